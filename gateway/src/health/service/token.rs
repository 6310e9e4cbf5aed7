//! Opaque tokens: text in hexadecimal digits, so that nobody is tempted to take one apart. They grant nothing; one that was
//! made up asks for what could be asked for without it.

/// Where a list or a watch stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The replica that gave it.
    pub replica_id: String,
    /// Revision of its boards; only it knows what that means.
    pub revision: u64,
    /// Hash of the selection.
    pub query: u64,
    /// Hash of all that was told, or empty if that is not on any board.
    pub etag: String,
    /// The last name on a page; empty for watches.
    pub after: String,
}

// === impl Token ===

impl Token {
    /// The text of it.
    pub fn encode(&self) -> String {
        let Self { replica_id, revision, query, etag, after } = self;
        let text = format!("1\n{replica_id}\n{revision}\n{query}\n{etag}\n{after}");
        text.bytes().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads the text; `None` if it is none of ours.
    pub fn decode(text: &str) -> Option<Self> {
        if !text.len().is_multiple_of(2) || !text.is_ascii() {
            return None;
        }
        let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).ok();
        let bytes: Vec<u8> = (0..text.len()).step_by(2).map(byte).collect::<Option<_>>()?;
        let text = String::from_utf8(bytes).ok()?;
        let [version, replica_id, revision, query, etag, after] =
            <[&str; 6]>::try_from(text.split('\n').collect::<Vec<_>>()).ok()?;
        (version == "1").then_some(())?;
        Some(Self {
            replica_id: replica_id.to_owned(),
            revision: revision.parse().ok()?,
            query: query.parse().ok()?,
            etag: etag.to_owned(),
            after: after.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_is_decoded_and_nothing_else() {
        let token = Token {
            replica_id: "a-1".into(),
            revision: 7,
            query: u64::MAX,
            etag: "00ff".into(),
            after: "nodes/n1".into(),
        };
        let text = token.encode();
        assert_eq!(Token::decode(&text), Some(token));
        for wrong in ["", "x", "zz", "31", "é0", &text[2..], &text[..text.len() - 1], &format!("{text}0a")] {
            assert_eq!(Token::decode(wrong), None, "{wrong:?}");
        }
    }
}
