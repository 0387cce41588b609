//! The report of an evaluation, in JSON, Markdown and HTML.

use serde::Serialize;

use crate::plot::{Table, bars, escape, human, page};
use crate::summary::Row;

/// An evaluation.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The version of the program that made it.
    pub version: &'static str,
    /// What was set, by name: as much as another run needs to be the same.
    pub setup: Vec<(String, String)>,
    /// What it found.
    pub rows: Vec<Row>,
}

fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

impl Report {
    /// Rows of one model and set, beside each other.
    fn groups(&self) -> impl Iterator<Item = &[Row]> {
        self.rows
            .chunk_by(|a, b| (&a.model, &a.set) == (&b.model, &b.set))
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let mut text = format!("# Evaluation\n\nreasoning-rpc {}\n\n", self.version);
        for (name, value) in &self.setup {
            text += &format!("- {name}: {value}\n");
        }
        for rows in self.groups() {
            text += &format!(
                "\n## {} on {}\n\n{}\n",
                rows[0].model,
                rows[0].set,
                table(rows).markdown()
            );
            if let Some(table) = instructions(rows) {
                text += &format!("{}\n", table.markdown());
            }
            text += &format!("{}\n", equal_bytes(rows));
        }
        text + "\n" + NOTES
    }

    /// As a page of its own, with plots.
    pub fn html(&self) -> String {
        let mut body = format!("<p>reasoning-rpc {}</p><ul>\n", escape(self.version));
        for (name, value) in &self.setup {
            body += &format!("<li>{}: {}</li>\n", escape(name), escape(value));
        }
        body += "</ul>\n";
        for rows in self.groups() {
            body += &format!(
                "<h2>{} on {}</h2>\n",
                escape(&rows[0].model),
                escape(&rows[0].set)
            );
            body += &table(rows).html();
            if let Some(table) = instructions(rows) {
                body += &table.html();
            }
            body += &format!("<p>{}</p>\n", escape(&equal_bytes(rows)));
            let accuracy: Vec<_> = rows
                .iter()
                .filter_map(|row| {
                    row.accuracy
                        .map(|accuracy| (row.policy.clone(), accuracy, row.interval))
                })
                .collect();
            if !accuracy.is_empty() {
                body += &bars("Accuracy, with 95% intervals", &accuracy, percent);
            }
            let of = |value: fn(&Row) -> f64| -> Vec<_> {
                rows.iter()
                    .map(|row| (row.policy.clone(), value(row), None))
                    .collect()
            };
            body += &bars(
                "Peak bytes of the cache, mean",
                &of(|row| row.mean_peak_bytes),
                human,
            );
            body += &bars("Tokens of an answer, mean", &of(|row| row.mean_tokens), |v| {
                format!("{v:.0}")
            });
            body += &bars(
                "Answers that ended by themselves",
                &of(|row| row.finish_rate),
                percent,
            );
            body += &bars(
                "Tokens a second of one answer",
                &of(|row| row.tokens_per_second.unwrap_or(0.0)),
                |v| format!("{v:.1}"),
            );
        }
        body += &format!("<p>{}</p>\n", escape(NOTES));
        page("Evaluation", &body)
    }
}

const NOTES: &str = "Accuracy is pass@1: the mean over problems of the share of right answers; for instructions, of \
answers that follow all of theirs, strictly. Intervals are Wilson's, 95%, with problems as trials. p is McNemar's \
exact two-sided test against the full cache (none) on the same problems; better and worse count the problems on which \
the policy has more or fewer right answers. Tokens a second are those of one answer while others are written beside \
it, compressions included. Peak bytes are those of an answer's cache; the bound is what an answer of all tokens that it \
may write would take.\n";

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(&[
        "policy",
        "accuracy",
        "95% interval",
        "better",
        "worse",
        "p",
        "finished",
        "tokens, mean",
        "median",
        "tokens/s",
        "compressions",
        "peak bytes, mean",
        "bound",
        "problems",
        "samples",
    ]);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    for row in rows {
        let paired = row.against_none;
        table.rows.push(vec![
            row.policy.clone(),
            or_dash(row.accuracy.map(percent)),
            or_dash(
                row.interval
                    .map(|(low, high)| format!("{} to {}", percent(low), percent(high))),
            ),
            or_dash(paired.map(|paired| paired.better_this.to_string())),
            or_dash(paired.map(|paired| paired.better_none.to_string())),
            or_dash(paired.map(|paired| format!("{:.3}", paired.p))),
            percent(row.finish_rate),
            format!("{:.1}", row.mean_tokens),
            format!("{:.0}", row.median_tokens),
            or_dash(row.tokens_per_second.map(|rate| format!("{rate:.1}"))),
            format!("{:.1}", row.mean_compressions),
            human(row.mean_peak_bytes),
            human(row.bound_bytes as f64),
            row.problems.to_string(),
            row.samples.to_string(),
        ]);
    }
    table
}

fn instructions(rows: &[Row]) -> Option<Table> {
    let mut table = Table::new(&[
        "policy",
        "answers, strict",
        "answers, loose",
        "instructions, strict",
        "instructions, loose",
    ]);
    for row in rows {
        let found = row.instructions?;
        table.rows.push(vec![
            row.policy.clone(),
            percent(found.answers_strict),
            percent(found.answers_loose),
            percent(found.strict),
            percent(found.loose),
        ]);
    }
    Some(table)
}

/// Whether the policies that compress had the same bytes to work with.
fn equal_bytes(rows: &[Row]) -> String {
    let bounds: Vec<(&str, usize)> = rows
        .iter()
        .filter(|row| row.policy != "none")
        .map(|row| (row.policy.as_str(), row.bound_bytes))
        .collect();
    let Some(&(_, first)) = bounds.first() else {
        return "No policy that compresses.".into();
    };
    match bounds.iter().all(|&(_, bytes)| bytes == first) {
        true => format!(
            "Equal peak bytes: every policy that compresses has at most {first} bytes for the longest answer."
        ),
        false => {
            let list: Vec<String> = bounds
                .iter()
                .map(|(policy, bytes)| format!("{policy} {bytes}"))
                .collect();
            format!(
                "Peak bytes are NOT equal; for the longest answer: {}. Compare rows of equal bytes only.",
                list.join(", ")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answers::tests::record;
    use crate::summary::rows;

    #[test]
    fn says_whether_bytes_are_equal() {
        let mut records = Vec::new();
        for (policy, bytes) in [("none", 900), ("rpc", 300), ("random <x>", 300)] {
            let mut record = record("");
            record.policy = policy.into();
            record.cache_bound_bytes = bytes;
            records.push(record);
        }
        let report = |records: &[_]| Report {
            version: "0",
            setup: vec![("seed".into(), "<1>".into())],
            rows: rows(records, "none"),
        };
        let equal = report(&records);
        assert!(
            equal
                .markdown()
                .contains("Equal peak bytes: every policy that compresses has at most 300 bytes")
        );
        let html = equal.html();
        assert!(
            html.contains("random &lt;x&gt;") && !html.contains("<x>") && html.matches("<svg").count() == 5
        );
        assert!(
            !html.contains("http://")
                || html.matches("http://").count() == html.matches("http://www.w3.org/2000/svg").count()
        );
        records[2].cache_bound_bytes = 301;
        assert!(
            report(&records)
                .markdown()
                .contains("NOT equal; for the longest answer: rpc 300, random <x> 301")
        );
        assert!(
            report(&records[..1])
                .markdown()
                .contains("No policy that compresses")
        );
    }
}
