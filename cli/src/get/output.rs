//! What goes to standard output: a table, JSON or YAML, once or event by event.

use super::kind::Kind;
use super::show::{Shown, plain};
use super::state::Event;
use super::table::{self, Widths};
use serde_json::{Value, json};
use std::fmt;
use std::io::{self, Write};

/// How things are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A table with the usual columns.
    Table,
    /// A table with all columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// What is shown, as the user asked for it.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The kind, which decides the columns.
    pub kind: Kind,
    /// The format.
    pub format: Format,
    /// Whether a table says the namespace of each row.
    pub namespaces: bool,
    /// Whether one thing was asked for by name: then it is printed as itself and not in a list.
    pub single: bool,
}

/// Prints a watch: what there was at the start, then each event.
#[derive(Debug)]
pub struct Printer<W> {
    layout: Layout,
    widths: Widths,
    out: W,
}

/// All of it as text. Empty tables are empty: there is nothing to head.
pub fn text(layout: Layout, shown: &[Shown]) -> String {
    let document = || match shown {
        [only] if layout.single => only.document.clone(),
        all => json!({"kind": "List", "items": all.iter().map(|shown| &shown.document).collect::<Vec<_>>()}),
    };
    match layout.format {
        Format::Table | Format::Wide if shown.is_empty() => String::new(),
        Format::Table | Format::Wide => {
            let rows: Vec<_> =
                std::iter::once(layout.heading()).chain(shown.iter().map(|shown| layout.row(shown))).collect();
            table::render(&rows)
        }
        Format::Json => format!("{:#}\n", document()),
        Format::Yaml => yaml(&document()),
    }
}

impl Layout {
    fn is_wide(self) -> bool {
        self.format == Format::Wide
    }

    fn heading(self) -> Vec<String> {
        let columns = self.kind.columns().iter().filter(|column| !column.wide || self.is_wide());
        let namespace = self.namespaces.then(|| "NAMESPACE".to_owned());
        namespace.into_iter().chain(columns.map(|column| column.name.to_owned())).collect()
    }

    fn row(self, shown: &Shown) -> Vec<String> {
        let namespace = self.namespaces.then(|| plain(&shown.key.namespace));
        let columns = self.kind.columns().iter().skip(1).zip(&shown.cells);
        let cells = columns.filter(|(column, _)| !column.wide || self.is_wide()).map(|(_, cell)| cell.clone());
        namespace.into_iter().chain([plain(&shown.key.name)]).chain(cells).collect()
    }
}

impl<W: Write> Printer<W> {
    /// Prints to `out`.
    pub fn new(layout: Layout, out: W) -> Self {
        Printer { layout, widths: Widths::default(), out }
    }

    /// Prints what there is at the start of a watch, in a table under its heading.
    ///
    /// # Errors
    /// What writing failed with.
    pub fn start(&mut self, shown: &[Shown]) -> io::Result<()> {
        match self.layout.format {
            Format::Table | Format::Wide => {
                let heading = [&["EVENT".to_owned()][..], &self.layout.heading()].concat();
                let rows: Vec<_> = shown.iter().map(|shown| self.row(Event::Added, shown)).collect();
                let longest =
                    [Event::Added, Event::Modified, Event::Deleted].map(|event| vec![event.name().to_owned()]);
                self.widths.fit(rows.iter().chain([&heading]).chain(&longest));
                for row in std::iter::once(&heading).chain(&rows) {
                    writeln!(self.out, "{}", self.widths.line(row))?;
                }
            }
            Format::Json | Format::Yaml => {
                for shown in shown {
                    self.document(Event::Added, shown)?;
                }
            }
        }
        self.out.flush()
    }

    /// Prints one event.
    ///
    /// # Errors
    /// What writing failed with.
    pub fn event(&mut self, event: Event, shown: &Shown) -> io::Result<()> {
        match self.layout.format {
            Format::Table | Format::Wide => {
                let row = self.row(event, shown);
                self.widths.fit([&row]);
                writeln!(self.out, "{}", self.widths.line(&row))?;
            }
            Format::Json | Format::Yaml => self.document(event, shown)?,
        }
        self.out.flush()
    }

    fn row(&self, event: Event, shown: &Shown) -> Vec<String> {
        [&[event.name().to_owned()][..], &self.layout.row(shown)].concat()
    }

    /// As the API server words a watch: one object with `type` and `object`, in JSON on a line of its own.
    fn document(&mut self, event: Event, shown: &Shown) -> io::Result<()> {
        let document = json!({"type": event.name(), "object": shown.document});
        match self.layout.format {
            Format::Yaml => write!(self.out, "---\n{}", yaml(&document)),
            _ => writeln!(self.out, "{document}"),
        }
    }
}

fn yaml(document: &Value) -> String {
    let mut text = String::new();
    match serde_saphyr::to_fmt_writer(&mut text, document) {
        Ok(()) => text,
        // Plain JSON data has a YAML form, and writing to a String does not fail; JSON is YAML as well.
        Err(_) => {
            text.clear();
            let _ = fmt::Write::write_fmt(&mut text, format_args!("{document:#}\n"));
            text
        }
    }
}

#[cfg(test)]
mod tests;
