//! The text of one file to objects: any number of YAML or JSON documents, Lists among them.
//!
//! A file is taken whole or not at all, so that a half-written one never deletes what it used to hold.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::api::{
    core::v1::{Endpoints, Namespace, Node, Pod, Secret, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_saphyr::Spanned;

use crate::watch::{
    address_pool::AddressPool,
    object::{Kind, Object},
};

/// The content of a file.
#[derive(Debug, Default, PartialEq)]
pub struct Parsed {
    /// Objects of the kinds that are read, in the order of the file, each with the line on which it begins.
    pub objects: Vec<(u64, Object)>,
    /// How many objects of other kinds were skipped, by kind.
    pub others: BTreeMap<String, u64>,
}

/// Why a file is not taken, and where that is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ParseError {
    /// Line, from 1.
    pub line: u64,
    /// Column, from 1.
    pub column: u64,
    /// Path of the field, such as `spec.ports[0].port`; empty where the text is no YAML at all.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    api_version: Option<String>,
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Items {
    #[serde(default)]
    items: Vec<Spanned<serde_json::Value>>,
}

/// Parses a file.
///
/// # Errors
/// The first [`ParseError`].
pub fn parse(text: &[u8]) -> Result<Parsed, ParseError> {
    let text = std::str::from_utf8(text).map_err(|error| not_utf8(text, error.valid_up_to()))?;
    let mut parsed = Parsed::default();
    for (lines_before, document) in documents(text) {
        document_objects(document, &mut parsed).map_err(|mut error| {
            error.line += lines_before;
            error
        })?;
        let start = parsed.objects.iter_mut().rev().take_while(|(line, _)| *line == 0).count();
        let from = parsed.objects.len() - start;
        parsed.objects[from..].iter_mut().for_each(|(line, _)| *line = lines_before + 1);
    }
    Ok(parsed)
}

fn not_utf8(text: &[u8], valid: usize) -> ParseError {
    let before = &text[..valid];
    let line = 1 + before.iter().filter(|byte| **byte == b'\n').count() as u64;
    let column = 1 + before.iter().rev().take_while(|byte| **byte != b'\n').count() as u64;
    ParseError { line, column, field: String::new(), reason: "is not UTF-8 text".to_owned() }
}

/// Cuts a file into its documents, each with the number of lines before it. A line that begins with `---` is a
/// marker wherever it stands: block scalars are indented, and a JSON file has no such line.
fn documents(text: &str) -> impl Iterator<Item = (u64, &str)> {
    let is_marker = |line: &str| {
        let line = line.trim_end_matches(['\n', '\r']);
        matches!(line.strip_prefix("---"), Some(rest) if rest.is_empty() || rest.starts_with([' ', '\t']))
    };
    let mut cuts = vec![(0, 0)];
    let mut offset = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if is_marker(line) && offset > 0 {
            cuts.push((number as u64, offset));
        }
        offset += line.len();
    }
    let ends = cuts.iter().skip(1).map(|(_, offset)| *offset).chain([text.len()]).collect::<Vec<_>>();
    cuts.into_iter().zip(ends).map(|((number, start), end)| (number, &text[start..end]))
}

/// Adds the objects of one document. Their lines are left at 0, except within a List.
fn document_objects(document: &str, parsed: &mut Parsed) -> Result<(), ParseError> {
    // Most of what separates documents is nothing, or comments.
    if document.lines().all(|line| line.starts_with("---") || line.trim().is_empty() || line.trim().starts_with('#')) {
        return Ok(());
    }
    let header = match plain_header(document) {
        Some(header) => header,
        None => match typed::<Option<Header>>(document)? {
            Some(header) => header,
            None => return Ok(()),
        },
    };
    let missing = |field: &str| ParseError {
        line: 1 + document.lines().take_while(|line| line.starts_with("---") || line.trim().is_empty()).count() as u64,
        column: 1,
        field: field.to_owned(),
        reason: "is missing; every object needs apiVersion and kind".to_owned(),
    };
    let api_version = header.api_version.ok_or_else(|| missing("apiVersion"))?;
    let kind = header.kind.ok_or_else(|| missing("kind"))?;
    if let Some(of) = kind.strip_suffix("List") {
        return typed::<Items>(document)?.items.into_iter().enumerate().try_for_each(|(index, item)| {
            let line = item.referenced.line();
            let within = |(field, reason): (String, String)| ParseError {
                line,
                column: item.referenced.column(),
                field: format!("items[{index}]{}{field}", if field.is_empty() { "" } else { "." }),
                reason,
            };
            list_item(item.value, &api_version, of, line, parsed).map_err(within)
        });
    }
    match known(&api_version, &kind) {
        None => *parsed.others.entry(format!("{api_version} {kind}")).or_default() += 1,
        Some(kind) => {
            let object = match kind {
                Kind::Service => typed::<Service>(document)?.into(),
                Kind::EndpointSlice => typed::<EndpointSlice>(document)?.into(),
                Kind::Endpoints => typed::<Endpoints>(document)?.into(),
                Kind::Pod => typed::<Pod>(document)?.into(),
                Kind::Node => typed::<Node>(document)?.into(),
                Kind::Secret => typed::<Secret>(document)?.into(),
                Kind::Namespace => typed::<Namespace>(document)?.into(),
                Kind::AddressPool => typed::<AddressPool>(document)?.into(),
                Kind::ServiceCIDR => typed::<ServiceCIDR>(document)?.into(),
            };
            let object =
                checked(object).map_err(|(field, reason)| ParseError { field, reason, ..missing("metadata.name") })?;
            parsed.objects.push((0, object));
        }
    }
    Ok(())
}

/// The header of a document in the usual form, read without parsing all of it: in a block mapping only keys of the
/// document itself stand at the start of a line. Whoever parses the rest checks both values again.
fn plain_header(document: &str) -> Option<Header> {
    let value = |name: &str| {
        let mut values = document.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let value = values.next()?.trim();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"./-".contains(&byte);
        (values.next().is_none() && !value.is_empty() && value.bytes().all(is_plain)).then(|| value.to_owned())
    };
    Some(Header { api_version: Some(value("apiVersion")?), kind: Some(value("kind")?) })
}

/// One item of a List. Items of a typed list, such as a ServiceList, may leave out their own type.
fn list_item(
    mut item: serde_json::Value,
    list_version: &str,
    list_of: &str,
    line: u64,
    parsed: &mut Parsed,
) -> Result<(), (String, String)> {
    let Some(fields) = item.as_object_mut() else {
        return Err((String::new(), "is not an object".to_owned()));
    };
    for (name, value) in [("apiVersion", list_version), ("kind", list_of)] {
        if !list_of.is_empty() && !fields.contains_key(name) {
            fields.insert(name.to_owned(), value.into());
        }
    }
    let text = |name: &str| fields.get(name).and_then(|value| value.as_str()).map(str::to_owned);
    let missing = |name: &str| (name.to_owned(), "is missing or not a string".to_owned());
    let api_version = text("apiVersion").ok_or_else(|| missing("apiVersion"))?;
    let kind = text("kind").ok_or_else(|| missing("kind"))?;
    fn from<T: DeserializeOwned + Into<Object>>(item: serde_json::Value) -> Result<Object, (String, String)> {
        let object: Result<T, _> = serde_path_to_error::deserialize(item);
        object.map(Into::into).map_err(|error| (field_path(error.path()), error.inner().to_string()))
    }
    let object = match known(&api_version, &kind) {
        None => {
            *parsed.others.entry(format!("{api_version} {kind}")).or_default() += 1;
            return Ok(());
        }
        Some(Kind::Service) => from::<Service>(item),
        Some(Kind::EndpointSlice) => from::<EndpointSlice>(item),
        Some(Kind::Endpoints) => from::<Endpoints>(item),
        Some(Kind::Pod) => from::<Pod>(item),
        Some(Kind::Node) => from::<Node>(item),
        Some(Kind::Secret) => from::<Secret>(item),
        Some(Kind::Namespace) => from::<Namespace>(item),
        Some(Kind::AddressPool) => from::<AddressPool>(item),
        Some(Kind::ServiceCIDR) => from::<ServiceCIDR>(item),
    }?;
    parsed.objects.push((line, checked(object)?));
    Ok(())
}

fn known(api_version: &str, kind: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|known| known.as_str() == kind && known.api_version() == api_version)
}

/// Deserializes one document, with the path of the field at which that fails.
fn typed<T: for<'de> Deserialize<'de>>(document: &str) -> Result<T, ParseError> {
    fn at_path<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
        field: &mut String,
    ) -> Result<T, D::Error> {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            *field = field_path(error.path());
            error.into_inner()
        })
    }
    let mut field = String::new();
    // As kubectl reads it: `y` and `n` are strings. The default budget would refuse a List of ten thousand Pods.
    let budget = serde_saphyr::budget! { max_nodes: 10_000_000, max_events: 20_000_000 };
    let options = serde_saphyr::options! { strict_booleans: true, budget: budget };
    let parse = |deserializer: serde_saphyr::Deserializer<'_, '_>| at_path(deserializer, &mut field);
    let result = serde_saphyr::with_deserializer_from_str_with_options(document, options, parse);
    result.map_err(|error| {
        let (line, column) = error.location().map_or((1, 1), |location| (location.line(), location.column()));
        // Messages name their place as well, counted from the start of the document; ours counts from that of the file.
        let message = error.without_snippet().to_string();
        let reason = message.split(" at line ").next().unwrap_or_default();
        let reason =
            reason.split_once(": ").filter(|(head, _)| head.starts_with("line ")).map_or(reason, |(_, rest)| rest);
        ParseError { line, column, field, reason: reason.to_owned() }
    })
}

fn field_path(path: &serde_path_to_error::Path) -> String {
    let path = path.to_string();
    // How the path writes "the document itself".
    if path == "." { String::new() } else { path }
}

/// Checks what later stages rely on: names that may stand in a path.
fn checked(object: Object) -> Result<Object, (String, String)> {
    let name_ok = |name: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        !name.is_empty() && name.len() <= 253 && name.bytes().all(inner) && !name.starts_with(['-', '.'])
    };
    let metadata = object.metadata();
    let name = metadata.name.as_deref().unwrap_or_default();
    if !name_ok(name) {
        let reason = if name.is_empty() {
            "is missing".to_owned()
        } else {
            format!("{name:?} is not a name; use lower-case letters, digits, '-' and '.'")
        };
        return Err(("metadata.name".to_owned(), reason));
    }
    match metadata.namespace.as_deref() {
        None | Some("") => Ok(object),
        Some(namespace) if name_ok(namespace) => Ok(object),
        Some(namespace) => {
            let reason = format!("{namespace:?} is not a namespace; use lower-case letters, digits and '-'");
            Err(("metadata.namespace".to_owned(), reason))
        }
    }
}

// === impl ParseError ===

impl fmt::Display for ParseError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "line {}, column {}: ", self.line, self.column)?;
        if !self.field.is_empty() {
            write!(out, "{}: ", self.field)?;
        }
        out.write_str(&self.reason)
    }
}

#[cfg(test)]
mod tests;
