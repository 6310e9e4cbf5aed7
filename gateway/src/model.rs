//! From objects to resources. Everything here is a pure function of the [`world::World`], apart from remembering what was
//! published of each Service, so that what is gone can be taken back.

pub mod annotation;
pub mod certificate;
pub mod derive;
pub mod endpoint;
pub mod node;
pub mod service;
pub mod slice;
pub mod workload;
pub mod world;
