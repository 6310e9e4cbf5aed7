//! Backends that a test writes itself, for what no good server would do.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A listening backend. Dropping it closes the port; connections go on.
#[derive(Debug)]
pub struct Backend {
    accepting: JoinHandle<()>,
}

// === impl Backend ===

impl Backend {
    /// Listens, and serves each connection in a task of its own.
    ///
    /// # Panics
    /// When the address is not free.
    pub async fn start<F, S>(address: SocketAddr, serve: S) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
        S: Fn(TcpStream) -> F + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap_or_else(|error| panic!("{address}: {error}"));
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
        Self { accepting }
    }

    /// Listens, and answers the head of every request with these bytes; then the connection ends.
    ///
    /// # Panics
    /// When the address is not free.
    pub async fn answering(address: SocketAddr, answer: &'static [u8]) -> Self {
        Self::start(address, move |mut stream| async move {
            // A client that went away does not want the answer.
            if read_head(&mut stream).await.is_ok() {
                let _ = stream.write_all(answer).await;
                let _ = stream.shutdown().await;
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            }
        })
        .await
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Reads up to the empty line that ends the head of an HTTP/1.1 message, and not a byte more.
///
/// # Errors
/// Those of the connection, and an early end.
pub async fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    String::from_utf8(head).map_err(std::io::Error::other)
}
