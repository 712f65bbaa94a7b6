//! Columns of text, as wide as they need to be. In: rows; out: lines. The first column and those with words are to the left,
//! numbers to the right.

/// Rows under a heading.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    heading: bool,
}

impl Table {
    pub(super) fn new(heading: &[&str]) -> Self {
        Self { rows: vec![heading.iter().map(|it| it.to_uppercase()).collect()], heading: true }
    }

    /// Without a heading.
    pub(super) fn bare() -> Self {
        Self { rows: Vec::new(), heading: false }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() <= usize::from(self.heading)
    }

    /// A line for each row, after `indent`.
    pub(super) fn text(&self, indent: &str) -> String {
        self.lines().map(|line| format!("{indent}{line}\n")).collect()
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cells = |column: usize| self.rows.iter().filter_map(move |row| row.get(column));
        let widths: Vec<_> =
            (0..columns).map(|column| cells(column).map(|cell| width(cell)).max().unwrap_or(0)).collect();
        let skip = usize::from(self.heading);
        let numbers: Vec<_> =
            (0..columns).map(|column| column > 0 && cells(column).skip(skip).all(|cell| is_number(cell))).collect();
        self.rows.iter().map(move |row| {
            let padded = row.iter().enumerate().map(|(column, cell)| {
                let gap = " ".repeat(widths[column] - width(cell));
                if numbers[column] { format!("{gap}{cell}") } else { format!("{cell}{gap}") }
            });
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
    }
}

fn is_number(cell: &str) -> bool {
    cell == "-" || cell.is_empty() || visible(cell).next().is_some_and(|first| first.is_ascii_digit())
}

/// How many letters are seen: colours take no room.
fn width(cell: &str) -> usize {
    visible(cell).count()
}

fn visible(cell: &str) -> impl Iterator<Item = char> {
    let mut colour = false;
    cell.chars().filter(move |c| {
        let seen = !colour && *c != '\x1b';
        colour = *c == '\x1b' || colour && *c != 'm';
        seen
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need_to_be_and_colours_take_no_room() {
        let mut table = Table::new(&["name", "calls", "state"]);
        table.row(["a".into(), "1".into(), "\x1b[31mbad\x1b[0m".into()]);
        table.row(["longer".into(), "1234567".into(), "good".into()]);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines[0], "NAME      CALLS  STATE");
        assert_eq!(lines[1], "a             1  \x1b[31mbad\x1b[0m");
        assert_eq!(lines[2], "longer  1234567  good");
    }
}
