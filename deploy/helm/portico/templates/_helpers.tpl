{{/*
Labels of one component, and of what selects it. Names are fixed and not derived from the release: a node has room for one
agent, and agents know the gateway by its name.
*/}}
{{- define "portico.labels" -}}
app.kubernetes.io/name: portico
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- define "portico.image" -}}
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{/* What a container sets itself wins over what the kubelet derives from the Service `kubernetes`. */}}
{{- define "portico.kubernetesApi" -}}
{{- if .Values.kubernetesApi.host -}}
- name: KUBERNETES_SERVICE_HOST
  valueFrom:
    configMapKeyRef:
      name: portico-kubernetes-api
      key: KUBERNETES_SERVICE_HOST
- name: KUBERNETES_SERVICE_PORT
  valueFrom:
    configMapKeyRef:
      name: portico-kubernetes-api
      key: KUBERNETES_SERVICE_PORT
{{- end }}
{{- end }}

{{- define "portico.telemetry" -}}
envFrom:
  - configMapRef:
      name: portico-telemetry
      optional: true
{{- end }}

{{/* Live says that the process answers, ready that it has the state it works from. Only readiness waits for the latter. */}}
{{- define "portico.probes" -}}
startupProbe:
  httpGet:
    path: /livez
    port: admin
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet:
    path: /livez
    port: admin
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet:
    path: /readyz
    port: admin
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end }}
