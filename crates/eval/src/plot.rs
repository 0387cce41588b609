//! Tables and plots, as Markdown, HTML and SVG, without anything from elsewhere.

use std::fmt::Write;

/// A table; the first column is text, the others are aligned to the right.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Names of the columns.
    pub header: Vec<String>,
    /// As many cells each.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub fn new(header: &[&str]) -> Self {
        Self {
            header: header.iter().map(|&name| name.to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | ").replace('\n', " "));
        let rule: Vec<String> = (0..self.header.len())
            .map(|at| if at == 0 { "---".into() } else { "---:".into() })
            .collect();
        let escaped = |row: &Vec<String>| {
            line(
                &row.iter()
                    .map(|cell| cell.replace('|', "\\|"))
                    .collect::<Vec<_>>(),
            )
        };
        let rows: String = self.rows.iter().map(escaped).collect();
        line(&self.header) + &line(&rule) + &rows
    }

    /// As HTML.
    pub fn html(&self) -> String {
        let line = |tag: &str, cells: &[String]| {
            let cells: String = cells
                .iter()
                .map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)))
                .collect();
            format!("<tr>{cells}</tr>\n")
        };
        let rows: String = self.rows.iter().map(|row| line("td", row)).collect();
        format!("<table>\n{}{rows}</table>\n", line("th", &self.header))
    }
}

/// Text as HTML shows it.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A page of its own.
pub fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{title}</title>\n<style>\n\
         body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }}\n\
         table {{ border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }}\n\
         th, td {{ border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: right }}\n\
         th:first-child, td:first-child {{ text-align: left }}\n\
         svg {{ max-width: 100%; height: auto; display: block; margin: 1rem 0 }}\n\
         code {{ background: #f3f3f3; padding: 0 .2rem }}\n\
         </style></head><body>\n<h1>{title}</h1>\n{body}</body></html>\n",
        title = escape(title),
    )
}

const COLOURS: [&str; 10] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b", "#17becf",
    "#000000",
];

/// A label, its value, and an interval if it has one.
pub type Bar = (String, f64, Option<(f64, f64)>);

/// A bar for each label.
pub fn bars(title: &str, rows: &[Bar], show: impl Fn(f64) -> String) -> String {
    const LEFT: f64 = 220.0;
    const WIDTH: f64 = 420.0;
    let most = rows
        .iter()
        .map(|(_, value, interval)| interval.map_or(*value, |(_, high)| high))
        .fold(0.0, f64::max);
    let scale = if most > 0.0 { WIDTH / most } else { 0.0 };
    let height = 34.0 + 26.0 * rows.len() as f64;
    let mut svg = open(760.0, height, title);
    for (index, (label, value, interval)) in rows.iter().enumerate() {
        let y = 34.0 + 26.0 * index as f64;
        let end = interval.map_or(*value, |(_, high)| high) * scale;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"16\" fill=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT - 8.0,
            y + 13.0,
            escape(label),
            y,
            value * scale,
            COLOURS[index % COLOURS.len()],
            LEFT + end + 8.0,
            y + 13.0,
            escape(&show(*value)),
        );
        if let Some((low, high)) = interval {
            let (low, high, middle) = (LEFT + low * scale, LEFT + high * scale, y + 8.0);
            let _ = writeln!(
                svg,
                "<path d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {:.1}v8M{high:.1} {:.1}v8\" stroke=\"#222\" fill=\"none\"/>",
                middle - 4.0,
                middle - 4.0,
            );
        }
    }
    svg + "</svg>\n"
}

/// A line for each series, axes from 0.
pub fn lines(title: &str, x_name: &str, y_name: &str, series: &[(String, Vec<(f64, f64)>)]) -> String {
    const LEFT: f64 = 80.0;
    const TOP: f64 = 36.0;
    const WIDTH: f64 = 480.0;
    const HEIGHT: f64 = 260.0;
    let points = || series.iter().flat_map(|(_, points)| points);
    let top = |of: fn(&(f64, f64)) -> f64| {
        nice(
            points()
                .map(of)
                .filter(|value| value.is_finite())
                .fold(0.0, f64::max),
        )
    };
    let (x_most, y_most) = (top(|point| point.0), top(|point| point.1));
    let at = |(x, y): (f64, f64)| (LEFT + x / x_most * WIDTH, TOP + HEIGHT - y / y_most * HEIGHT);
    let mut svg = open(760.0, TOP + HEIGHT + 50.0, title);
    for step in 0..=4 {
        let share = f64::from(step) / 4.0;
        let (x, y) = at((share * x_most, share * y_most));
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            LEFT + WIDTH,
            LEFT - 6.0,
            y + 4.0,
            short(share * y_most),
            TOP + HEIGHT + 18.0,
            short(share * x_most),
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        LEFT + WIDTH / 2.0,
        TOP + HEIGHT + 40.0,
        escape(x_name),
        TOP + HEIGHT / 2.0,
        escape(y_name),
    );
    for (index, (name, points)) in series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let mut path = String::new();
        let mut marks = String::new();
        for (step, &point) in points
            .iter()
            .filter(|point| point.0.is_finite() && point.1.is_finite())
            .enumerate()
        {
            let (x, y) = at(point);
            let _ = write!(path, "{}{x:.1} {y:.1}", if step == 0 { 'M' } else { 'L' });
            let _ = write!(
                marks,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
            );
        }
        let y = TOP + 10.0 + 20.0 * index as f64;
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" stroke=\"{colour}\" stroke-width=\"2\" fill=\"none\"/>{marks}\
             <rect x=\"{:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT + WIDTH + 16.0,
            y - 10.0,
            LEFT + WIDTH + 34.0,
            y,
            escape(name),
        );
    }
    svg + "</svg>\n"
}

fn open(width: f64, height: f64, title: &str) -> String {
    let title = escape(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" role=\"img\" aria-label=\"{title}\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/><text x=\"8\" y=\"20\" font-size=\"14\" font-weight=\"bold\">{title}</text>\n"
    )
}

/// The next of 1, 2, 2.5, 4, 5, 8, 10 times a power of ten.
fn nice(value: f64) -> f64 {
    if !value.is_finite() || value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    let factor = [1.0, 2.0, 2.5, 4.0, 5.0, 8.0, 10.0]
        .into_iter()
        .find(|factor| value <= factor * power * 1.000_001);
    factor.unwrap_or(10.0) * power
}

fn short(value: f64) -> String {
    match value {
        value if value >= 1000.0 && value.fract() == 0.0 => format!("{value:.0}"),
        value => format!("{}", (value * 1000.0).round() / 1000.0),
    }
}

/// Bytes in the largest unit that they fill.
pub fn human(bytes: f64) -> String {
    let mut size = bytes;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if size < 1024.0 {
            break;
        }
        (size, unit) = (size / 1024.0, next);
    }
    match unit {
        "B" => format!("{size:.0} B"),
        _ => format!("{size:.1} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_escape_what_would_break_them() {
        let mut table = Table::new(&["a", "b"]);
        table.rows.push(vec!["<x|y>".into(), "1".into()]);
        assert_eq!(table.markdown(), "| a | b |\n| --- | ---: |\n| <x\\|y> | 1 |\n");
        assert!(table.html().contains("<td>&lt;x|y&gt;</td><td>1</td>"));
    }

    #[test]
    fn plots_hold_every_point_inside() {
        let svg = bars(
            "T",
            &[("a".into(), 0.5, Some((0.4, 0.6))), ("b".into(), 0.0, None)],
            |v| v.to_string(),
        );
        assert!(svg.contains(">a</text>") && svg.contains("width=\"350.0\"") && svg.ends_with("</svg>\n"));
        let svg = lines(
            "T",
            "x",
            "y",
            &[("s".into(), vec![(0.0, 0.0), (7.0, 30.0), (3.0, f64::NAN)])],
        );
        // 7 of 8, 30 of 40.
        assert!(svg.contains("M80.0 296.0L500.0 101.0"), "{svg}");
        assert!(!svg.contains("NaN"));
        assert!(!lines("T", "x", "y", &[]).contains("NaN"));
        assert!(!bars("T", &[("a".into(), 0.0, None)], |v| v.to_string()).contains("NaN"));
    }

    #[test]
    fn axes_end_at_round_numbers() {
        for (value, expected) in [
            (0.0, 1.0),
            (7.0, 8.0),
            (30.0, 40.0),
            (100.0, 100.0),
            (0.11, 0.2),
            (2.1, 2.5),
        ] {
            assert!((nice(value) - expected).abs() < 1e-9, "{value}");
        }
        assert_eq!(
            (human(1023.0), human(1536.0)),
            ("1023 B".into(), "1.5 KiB".into())
        );
    }
}
