//! The fields of a head as they came. Most answers pass without anybody asking for a field by name, so no map is made of
//! them unless the other side is HTTP/2.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, header};

use super::{Refused, framing::Declared, request::field_of};

/// The fields of one head, in order, in their spelling.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    head: Bytes,
    fields: Vec<Field>,
}

/// Where in the head a field is.
#[derive(Clone, Debug)]
struct Field {
    name: Range<u32>,
    value: Range<u32>,
    /// It concerns only the connection that it came on.
    hop: bool,
}

// === impl Fields ===

impl Fields {
    /// Takes over what was parsed from `head`, and notes what frames the body.
    ///
    /// # Errors
    /// As [`Declared::note`].
    pub(super) fn new(head: &Bytes, parsed: &[httparse::Header<'_>], declared: &mut Declared) -> Result<Self, Refused> {
        let begin = head.as_ptr() as usize;
        // A head is far shorter than 4 GiB.
        let range = |part: &[u8]| {
            let start = (part.as_ptr() as usize - begin) as u32;
            start..start + part.len() as u32
        };
        let mut fields = Vec::with_capacity(parsed.len());
        let mut named = false;
        for field in parsed {
            let hop = match field.name.len() {
                // The lengths of the names that matter; most fields go no further than this.
                2 | 7 | 10 | 14 | 16 | 17 => {
                    let hop = is_hop(field.name);
                    if hop || field.name.len() == 14 {
                        let (name, value) = field_of(head, field)?;
                        declared.note(&name, &value)?;
                        named |= name == header::CONNECTION;
                    }
                    hop
                }
                _ => false,
            };
            fields.push(Field { name: range(field.name.as_bytes()), value: range(field.value), hop });
        }
        let mut fields = Self { head: head.clone(), fields };
        if named {
            fields.mark_named();
        }
        Ok(fields)
    }

    /// Marks the fields that `Connection` names.
    fn mark_named(&mut self) {
        let connection = |field: &&Field| self.name(field).eq_ignore_ascii_case(b"connection");
        let options: Vec<Bytes> = self
            .fields
            .iter()
            .filter(connection)
            .flat_map(|field| self.value(field).split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|option| !option.eq_ignore_ascii_case(b"keep-alive") && !option.eq_ignore_ascii_case(b"close"))
            .filter(|option| !option.is_empty() && !option.eq_ignore_ascii_case(b"content-length"))
            .map(|option| self.head.slice_ref(option))
            .collect();
        if options.is_empty() {
            return;
        }
        let head = self.head.clone();
        for field in &mut self.fields {
            let name = &head[field.name.start as usize..field.name.end as usize];
            field.hop |= options.iter().any(|option| option.eq_ignore_ascii_case(name));
        }
    }

    fn name(&self, field: &Field) -> &[u8] {
        &self.head[field.name.start as usize..field.name.end as usize]
    }

    fn value(&self, field: &Field) -> &[u8] {
        &self.head[field.value.start as usize..field.value.end as usize]
    }

    /// The value of the first field of this name that concerns both ends.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let named = |field: &&Field| self.name(field).eq_ignore_ascii_case(name.as_bytes());
        self.fields.iter().filter(|field| !field.hop).find(named).map(|field| self.value(field))
    }

    /// The value of the first field of this name, also if it concerns only the connection.
    pub fn get_hop(&self, name: &str) -> Option<&[u8]> {
        let named = |field: &&Field| self.name(field).eq_ignore_ascii_case(name.as_bytes());
        self.fields.iter().find(named).map(|field| self.value(field))
    }

    /// Writes the fields that concern both ends.
    pub fn write(&self, out: &mut BytesMut) {
        out.reserve(self.head.len());
        for field in self.fields.iter().filter(|field| !field.hop) {
            out.put_slice(self.name(field));
            out.put_slice(b": ");
            out.put_slice(self.value(field));
            out.put_slice(b"\r\n");
        }
    }

    /// Adds the fields that concern both ends to a map.
    pub fn append_to(&self, headers: &mut HeaderMap) {
        headers.reserve(self.fields.len());
        for field in self.fields.iter().filter(|field| !field.hop) {
            let name = std::str::from_utf8(self.name(field)).unwrap_or_default();
            // What the parser has let through is valid.
            if let Ok((name, value)) = field_of(&self.head, &httparse::Header { name, value: self.value(field) }) {
                headers.append(name, value);
            }
        }
    }
}

fn is_hop(name: &str) -> bool {
    ["connection", "transfer-encoding", "keep-alive", "upgrade", "te", "proxy-connection"]
        .iter()
        .any(|hop| name.eq_ignore_ascii_case(hop))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &str) -> Fields {
        let head = Bytes::from(format!("{lines}\r\n\r\n"));
        let mut room = [httparse::EMPTY_HEADER; 16];
        let Ok(httparse::Status::Complete((_, parsed))) = httparse::parse_headers(&head, &mut room) else {
            unreachable!("the cases are complete")
        };
        Fields::new(&head, parsed, &mut Declared::default()).expect("unambiguous")
    }

    fn written(lines: &str) -> String {
        let mut out = BytesMut::new();
        fields(lines).write(&mut out);
        String::from_utf8(out.to_vec()).expect("ASCII")
    }

    #[test]
    fn fields_pass_as_they_came() {
        assert_eq!(written("Server: x\r\nETag:  \"a\" \r\nX:"), "Server: x\r\nETag: \"a\"\r\nX: \r\n");
    }

    #[test]
    fn those_of_the_connection_do_not() {
        let lines = "Connection: keep-alive, X-Hop\r\nx-hop: 1\r\nKeep-Alive: timeout=5\r\nTE: x\r\nUpgrade: h2\r\n\
            Transfer-Encoding: chunked\r\nProxy-Connection: x\r\nA: b";
        assert_eq!(written(lines), "A: b\r\n");
        assert_eq!(fields(lines).get_hop("upgrade"), Some(&b"h2"[..]));
        assert_eq!((fields(lines).get("upgrade"), fields(lines).get("a")), (None, Some(&b"b"[..])));
        assert_eq!(written("Connection: content-length\r\nContent-Length: 4"), "Content-Length: 4\r\n");
    }

    #[test]
    fn a_map_has_the_same() {
        let mut headers = HeaderMap::new();
        fields("Set-Cookie: a\r\nSet-Cookie: b\r\nConnection: close").append_to(&mut headers);
        assert_eq!(headers.get_all("set-cookie").iter().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(headers.len(), 2);
    }
}
