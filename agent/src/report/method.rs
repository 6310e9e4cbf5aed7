//! Methods of HTTP as attribute values: a closed set, because a client may send any word.

use http::Method;

/// Values of `http.request.method`; the last stands for all others.
pub const METHODS: [&str; 11] =
    ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE", "QUERY", "_OTHER"];

/// Where a method is in [`METHODS`].
pub fn index(method: &Method) -> usize {
    match *method {
        Method::GET => 0,
        Method::POST => 1,
        _ => METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(METHODS.len() - 1),
    }
}

/// The value of `http.request.method`.
pub fn label(method: &Method) -> &'static str {
    METHODS[index(method)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_known_or_other() {
        for method in ["GET", "POST", "PATCH", "TRACE", "QUERY"] {
            assert_eq!(label(&method.parse().unwrap()), method);
        }
        for method in ["get", "PROPFIND", "_OTHER", "X"] {
            assert_eq!(label(&method.parse().unwrap()), "_OTHER");
        }
    }
}
