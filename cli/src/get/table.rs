//! Tables as kubectl prints them: columns three spaces apart, no lines, headings in capitals.

/// Between columns.
const GAP: usize = 3;

/// The width of each column, in characters. Grows with what it has seen, so that the rows of a watch stay aligned with
/// those before where they can.
#[derive(Clone, Debug, Default)]
pub struct Widths(Vec<usize>);

impl Widths {
    /// Makes room for these rows.
    pub fn fit<'a>(&mut self, rows: impl IntoIterator<Item = &'a Vec<String>>) {
        for row in rows {
            self.0.resize(self.0.len().max(row.len()), 0);
            for (width, cell) in self.0.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
    }

    /// One row as a line without an end. The last cell is not padded.
    pub fn line(&self, row: &[String]) -> String {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if at + 1 < row.len() {
                let width = self.0.get(at).copied().unwrap_or_default();
                let padding = width.saturating_sub(cell.chars().count()) + GAP;
                line.extend(std::iter::repeat_n(' ', padding));
            }
        }
        line
    }
}

/// Rows, the first of which is the heading, as lines.
pub fn render(rows: &[Vec<String>]) -> String {
    let mut widths = Widths::default();
    widths.fit(rows);
    rows.iter().map(|row| widths.line(row) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|cell| cell.to_string()).collect()
    }

    #[test]
    fn columns_are_aligned_by_characters() {
        let rows = [row(&["NAME", "TYPE", "AGE"]), row(&["wéb", "x", "1s"]), row(&["longer", "y", "20s"])];
        let expected = "\
NAME     TYPE   AGE
wéb      x      1s
longer   y      20s
";
        assert_eq!(render(&rows), expected);
        assert_eq!(render(&[]), "");
    }

    #[test]
    fn later_rows_keep_the_columns_of_earlier_ones() {
        let mut widths = Widths::default();
        widths.fit(&[row(&["longer", "x"])]);
        widths.fit(&[row(&["a", "b"])]);
        assert_eq!(widths.line(&row(&["a", "b"])), "a        b");
    }
}
