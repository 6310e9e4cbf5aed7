//! Raw TCP: one line of JSON about the connection, then every byte comes back.

use super::seen::{Connection, Protocol};
use bytes::BytesMut;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The most bytes on their way through at once. The memory is touched only as far as reads fill it.
const BUFFER: usize = 64 << 10;

/// Serves one connection until the peer has half-closed it and has been sent everything back. `already_read` comes back
/// first.
///
/// A peer that sends without reading is held up by its own unread bytes: nothing is kept beyond one buffer.
///
/// # Errors
/// What reading or writing failed with.
pub async fn serve(connection: &Connection, already_read: BytesMut, mut stream: TcpStream) -> io::Result<()> {
    // One write for the line and the first bytes: a ping-pong client would otherwise see two segments.
    let mut first = connection.seen(Protocol::Tcp).line().to_vec();
    first.extend_from_slice(&already_read);
    drop(already_read);
    stream.write_all(&first).await?;
    drop(first);
    let mut buffer = BytesMut::with_capacity(BUFFER);
    while stream.read_buf(&mut buffer).await? > 0 {
        stream.write_all(&buffer).await?;
        buffer.clear();
    }
    stream.shutdown().await
}
