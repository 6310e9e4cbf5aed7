//! Generated messages, clients and servers, and the descriptors for reflection.

/// All files of `proto/` and grpc.health.v1 as an encoded `FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("descriptor");

macro_rules! generated {
    ($(#[$doc:meta])* $module:ident, $package:literal) => {
        $(#[$doc])*
        #[allow(clippy::all, missing_docs, rustdoc::all)]
        pub mod $module {
            tonic::include_proto!($package);
        }
    };
}

/// `portico.*` packages. The nesting mirrors the package names, which the generated code relies on.
pub mod portico {
    /// Discovery.
    pub mod discovery {
        generated!(
            /// `portico.discovery.v1`
            v1, "portico.discovery.v1");
    }
    /// Node status.
    pub mod node {
        generated!(
            /// `portico.node.v1`
            v1, "portico.node.v1");
    }
    /// Node health.
    pub mod health {
        generated!(
            /// `portico.health.v1`
            v1, "portico.health.v1");
    }
    /// Inspection.
    pub mod inspect {
        generated!(
            /// `portico.inspect.v1`
            v1, "portico.inspect.v1");
    }
    /// Sample backend.
    pub mod echo {
        generated!(
            /// `portico.echo.v1`
            v1, "portico.echo.v1");
    }
}

pub use portico::{
    discovery::v1 as discovery, echo::v1 as echo, health::v1 as health, inspect::v1 as inspect, node::v1 as node,
};

generated!(
    /// `grpc.health.v1`
    grpc_health, "grpc.health.v1");
