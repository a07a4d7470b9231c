//! Tables on stdout, as wide as the terminal.

use lowbit_train::escaped;

/// A column of a table.
pub struct Column {
    pub name: String,
    /// Whether its texts end under each other, as numbers do.
    pub is_right: bool,
    /// Where there is no room for all columns, those of the highest number are left out first; 0 stays.
    pub spare: u32,
}

impl Column {
    pub fn left(name: &str, spare: u32) -> Self {
        Self { name: name.into(), is_right: false, spare }
    }

    pub fn right(name: &str, spare: u32) -> Self {
        Self { is_right: true, ..Self::left(name, spare) }
    }
}

/// The table of `rows`, each with a text for each column, in `width` columns of a terminal; `None` if there is no room for the columns
/// that stay.
pub fn fitted(columns: &[Column], rows: &[Vec<String>], width: Option<usize>) -> Option<String> {
    let header: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(&header)
        .chain(rows)
        .map(|row| row.iter().map(|text| in_a_line(text)).collect())
        .collect();
    let length = |text: &str| text.chars().count();
    let widths: Vec<usize> =
        (0..columns.len()).map(|i| lines.iter().map(|line| length(&line[i])).max().unwrap_or(0)).collect();
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    let needed = |shown: &[usize]| shown.iter().map(|&i| widths[i] + 2).sum::<usize>().saturating_sub(2);
    while width.is_some_and(|width| needed(&shown) > width) {
        let spared =
            shown.iter().copied().max_by_key(|&i| columns[i].spare).filter(|&i| columns[i].spare > 0)?;
        shown.retain(|&i| i != spared);
    }
    let cell = |line: &[String], i: usize| {
        let room = " ".repeat(widths[i] - length(&line[i]));
        if columns[i].is_right { format!("{room}{}", line[i]) } else { format!("{}{room}", line[i]) }
    };
    let lines = lines.iter().map(|line| {
        let cells: Vec<String> = shown.iter().map(|&i| cell(line, i)).collect();
        cells.join("  ").trim_end().to_string()
    });
    Some(lines.collect::<Vec<_>>().join("\n"))
}

/// The table; one that is too wide for the terminal is that all the same.
pub fn whole(columns: &[Column], rows: &[Vec<String>], width: Option<usize>) -> String {
    fitted(columns, rows, width)
        .or_else(|| {
            let stay = |column: &Column| column.spare == 0;
            let kept: Vec<usize> = (0..columns.len()).filter(|&i| stay(&columns[i])).collect();
            let rows: Vec<Vec<String>> =
                rows.iter().map(|row| kept.iter().map(|&i| row[i].clone()).collect()).collect();
            let columns: Vec<Column> = columns
                .iter()
                .filter(|column| stay(column))
                .map(|column| Column { name: column.name.clone(), ..*column })
                .collect();
            fitted(&columns, &rows, None)
        })
        .unwrap_or_default()
}

/// A text without line breaks and what is not seen.
pub fn in_a_line(text: &str) -> String {
    escaped(text).replace(['\n', '\t'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_that_can_be_spared_are_left_out() {
        let columns = [
            Column::left("name", 0),
            Column::right("top-1", 0),
            Column::left("started", 2),
            Column::left("bits", 1),
        ];
        let row = |texts: [&str; 4]| texts.map(String::from).to_vec();
        let rows = [row(["a", "1.00%", "today", "W2A2"]), row(["a\nlong", "100.00%", "", "fp32"])];
        let all = "name      top-1  started  bits\n\
                   a         1.00%  today    W2A2\n\
                   a long  100.00%           fp32";
        assert_eq!(fitted(&columns, &rows, None).unwrap(), all);
        assert_eq!(fitted(&columns, &rows, Some(30)).unwrap(), all);
        let narrow = "name      top-1  bits\n\
                      a         1.00%  W2A2\n\
                      a long  100.00%  fp32";
        assert_eq!(fitted(&columns, &rows, Some(29)).unwrap(), narrow);
        let narrowest = "name      top-1\n\
                         a         1.00%\n\
                         a long  100.00%";
        assert_eq!(fitted(&columns, &rows, Some(15)).unwrap(), narrowest);
        assert_eq!(fitted(&columns, &rows, Some(14)), None);
        assert_eq!(whole(&columns, &rows, Some(14)), narrowest);
    }
}
