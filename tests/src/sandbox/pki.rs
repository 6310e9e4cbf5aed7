//! Keys and certificates of the cluster, as `kubeadm` would make them: one authority, and for each part a certificate
//! that says who it is.

use std::{fs, net::IpAddr, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};

use super::{
    plan::{API_SERVICE, HOST, Plan, Role, api_url},
    state::State,
};

/// The authority that signs all others.
pub const CA: &str = "ca.crt";
/// Its key.
pub const CA_KEY: &str = "ca.key";
/// What signs tokens of service accounts.
pub const SERVICE_ACCOUNT_KEY: &str = "sa.key";
/// What checks them.
pub const SERVICE_ACCOUNT_PUBLIC_KEY: &str = "sa.pub";

type Authority = CertifiedIssuer<'static, KeyPair>;

/// Who a certificate is for.
struct Subject<'a> {
    name: &'a str,
    /// Group of users, which Kubernetes reads from the organisation.
    group: Option<&'a str>,
    /// Addresses and DNS names under which it serves.
    serves: Vec<SanType>,
}

/// Issues everything, and writes a kubeconfig for each part that talks to the API server.
///
/// # Errors
/// Those of the file system.
pub fn issue(state: &State, plan: &Plan) -> Result<()> {
    let authority = authority()?;
    write(&state.pki(CA), &authority.pem())?;
    write(&state.pki(CA_KEY), &authority.key().serialize_pem())?;
    let key = KeyPair::generate().context("cannot make a key")?;
    write(&state.pki(SERVICE_ACCOUNT_KEY), &key.serialize_pem())?;
    write(&state.pki(SERVICE_ACCOUNT_PUBLIC_KEY), &key.public_key_pem())?;

    let part = |file: &str, subject: Subject<'_>| certify(state, &authority, file, &subject);
    let user = |name, group| Subject { name, group, serves: Vec::new() };
    part("apiserver", Subject { name: "kube-apiserver", group: None, serves: api_names()? })?;
    part("apiserver-kubelet-client", user("kube-apiserver-kubelet-client", Some("system:masters")))?;
    for (file, subject) in [
        ("admin", user("kubernetes-admin", Some("system:masters"))),
        ("controller-manager", user("system:kube-controller-manager", None)),
        ("scheduler", user("system:kube-scheduler", None)),
        ("kube-proxy", user("system:kube-proxy", None)),
    ] {
        part(file, subject)?;
        kubeconfig(state, file, &state.pki(&format!("{file}.kubeconfig")))?;
    }
    kubeconfig(state, "admin", &state.kubeconfig())?;
    for node in (1..=plan.nodes).map(Role::Node) {
        let name = node.name();
        let user = format!("system:node:{name}");
        let mut serves = vec![dns(&name)?];
        serves.extend(node.addresses().map(SanType::IpAddress));
        // The kubelet serves with the same certificate.
        part(&name, Subject { name: &user, group: Some("system:nodes"), serves })?;
        kubeconfig(state, &name, &state.pki(&format!("{name}.kubeconfig")))?;
    }
    Ok(())
}

fn authority() -> Result<Authority> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("kubernetes", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().context("cannot make a key")?;
    CertifiedIssuer::self_signed(params, key).context("cannot make the authority")
}

fn certify(state: &State, authority: &Authority, file: &str, subject: &Subject<'_>) -> Result<()> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(subject.name, subject.group);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if !subject.serves.is_empty() {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.subject_alt_names.clone_from(&subject.serves);
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().context("cannot make a key")?;
    let certificate = params.signed_by(&key, authority).with_context(|| format!("cannot certify {file}"))?;
    write(&state.pki(&format!("{file}.crt")), &certificate.pem())?;
    write(&state.pki(&format!("{file}.key")), &key.serialize_pem())
}

fn named(name: &str, group: Option<&str>) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    if let Some(group) = group {
        distinguished.push(DnType::OrganizationName, group);
    }
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Under which names Pods, nodes and the machine itself reach the API server.
fn api_names() -> Result<Vec<SanType>> {
    let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let mut all = names.into_iter().map(dns).collect::<Result<Vec<_>>>()?;
    all.push(dns("kubernetes.default.svc.cluster.local")?);
    all.extend(HOST.map(SanType::IpAddress));
    for address in API_SERVICE.into_iter().chain(["127.0.0.1", "::1"]) {
        let address: IpAddr = address.parse().with_context(|| format!("'{address}' is no address"))?;
        all.push(SanType::IpAddress(address));
    }
    Ok(all)
}

fn dns(name: &str) -> Result<SanType> {
    Ok(SanType::DnsName(name.try_into().with_context(|| format!("'{name}' is no DNS name"))?))
}

/// With paths instead of contents, so that it can be read by people.
fn kubeconfig(state: &State, user: &str, to: &Path) -> Result<()> {
    let file = |name: String| state.pki(&name).display().to_string();
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "sandbox",
        "clusters": [{
            "name": "sandbox",
            "cluster": { "server": api_url(), "certificate-authority": file(CA.to_owned()) },
        }],
        "users": [{
            "name": user,
            "user": {
                "client-certificate": file(format!("{user}.crt")),
                "client-key": file(format!("{user}.key")),
            },
        }],
        "contexts": [{ "name": "sandbox", "context": { "cluster": "sandbox", "user": user } }],
    });
    // JSON is YAML.
    write(to, &format!("{config:#}\n"))
}

/// Keys are for root alone, and the rest needs nobody else either.
fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot protect {}", path.display()))
}
