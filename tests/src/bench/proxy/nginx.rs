//! nginx's configuration.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Proxy, Start, write};
use crate::bench::scenario::Scenario;

/// Where distributions keep the stream module, when it is not part of the program.
const STREAM_MODULES: [&str; 3] = [
    "/usr/lib/nginx/modules/ngx_stream_module.so",
    "/usr/lib64/nginx/modules/ngx_stream_module.so",
    "/usr/share/nginx/modules/ngx_stream_module.so",
];

/// Writes the configuration; all files nginx makes stay in `dir`.
pub fn configure(dir: &Path) -> Result<Start> {
    let module = STREAM_MODULES
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
        .context("find nginx's stream module: scripts/setup installs libnginx-mod-stream")?;
    let path = write(dir, "nginx.conf", &render(&module))?;
    let args = ["-p", &dir.display().to_string(), "-c", &path.display().to_string(), "-e", "stderr"];
    Ok(Start { args: args.map(str::to_owned).into(), version: &["-v"] })
}

/// What is not a default, and why:
///
/// - no master process: the one worker is the process itself, which is what a measurement by process wants.
/// - `keepalive` and `keepalive_requests`: upstream and client connections are kept, and not closed every 1000 requests.
/// - `proxy_buffer_size` in the stream block: 256 KiB a read cost less per byte than the default of 16 KiB.
fn render(module: &Path) -> String {
    let mut http = String::new();
    let mut stream = String::new();
    for scenario in Scenario::ALL {
        let name = format!("{scenario:?}").to_lowercase();
        let address = Proxy::Nginx.address(scenario);
        let (block, keep, server) = match scenario {
            Scenario::Http => (
                &mut http,
                "        keepalive 64;\n        keepalive_requests 1000000000;\n",
                format!(
                    "        listen {address};
        location / {{
            proxy_pass http://{name};
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}\n"
                ),
            ),
            Scenario::Grpc => (
                &mut http,
                "        keepalive 64;\n        keepalive_requests 1000000000;\n",
                format!(
                    "        listen {address} http2;
        location / {{
            grpc_pass grpc://{name};
            grpc_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}\n"
                ),
            ),
            Scenario::Tcp | Scenario::Download => {
                (&mut stream, "", format!("        listen {address};\n        proxy_pass {name};\n"))
            }
            Scenario::Udp => (&mut stream, "", format!("        listen {address} udp;\n        proxy_pass {name};\n")),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(block, "    upstream {name} {{\n        hash $remote_addr consistent;");
        for backend in scenario.backends() {
            let _ = writeln!(block, "        server {backend};");
        }
        let _ = writeln!(block, "{keep}    }}\n    server {{\n{server}    }}");
    }
    format!(
        "load_module {};
daemon off;
master_process off;
pid nginx.pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path client_body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
{http}}}
stream {{
    proxy_buffer_size 256k;
{stream}}}
",
        module.display()
    )
}
