//! Today's date for templates that write it.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// `seconds` since 1970 in UTC, as strftime writes it; `None` with a directive that it does not know.
pub(super) fn strftime(format: &str, seconds: u64) -> Option<String> {
    let days = seconds / 86_400;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let (mut year, mut rest) = (1970, days);
    while rest >= year_length(year) {
        rest -= year_length(year);
        year += 1;
    }
    let of_year = rest + 1;
    let mut month = 0;
    while rest >= month_length(year, month) {
        rest -= month_length(year, month);
        month += 1;
    }
    let (day, weekday, name) = (rest + 1, DAYS[(days % 7) as usize], MONTHS[month]);

    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let written = match chars.next()? {
            'Y' => write!(text, "{year}"),
            'y' => write!(text, "{:02}", year % 100),
            'm' => write!(text, "{:02}", month + 1),
            'B' => write!(text, "{name}"),
            'b' => write!(text, "{}", &name[..3]),
            'd' => write!(text, "{day:02}"),
            'e' => write!(text, "{day:2}"),
            'j' => write!(text, "{of_year:03}"),
            'A' => write!(text, "{weekday}"),
            'a' => write!(text, "{}", &weekday[..3]),
            'H' => write!(text, "{hour:02}"),
            'I' => write!(text, "{:02}", (hour + 11) % 12 + 1),
            'M' => write!(text, "{minute:02}"),
            'S' => write!(text, "{second:02}"),
            'p' => write!(text, "{}", if hour < 12 { "AM" } else { "PM" }),
            'F' => write!(text, "{year}-{:02}-{day:02}", month + 1),
            'T' => write!(text, "{hour:02}:{minute:02}:{second:02}"),
            'Z' => write!(text, "UTC"),
            'z' => write!(text, "+0000"),
            '%' => write!(text, "%"),
            _ => return None,
        };
        written.ok()?;
    }
    Some(text)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn year_length(year: u64) -> u64 {
    365 + u64::from(is_leap(year))
}

fn month_length(year: u64, month: usize) -> u64 {
    match month {
        1 => 28 + u64::from(is_leap(year)),
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::strftime;

    #[test]
    fn dates_of_known_moments() {
        let all = "%Y-%m-%d %H:%M:%S %A %j %B %b %a %e %y %I%p %F %T %z %%";
        for (seconds, expected) in [
            (
                0,
                "1970-01-01 00:00:00 Thursday 001 January Jan Thu  1 70 12AM 1970-01-01 00:00:00 +0000 %",
            ),
            (
                951_827_696,
                "2000-02-29 12:34:56 Tuesday 060 February Feb Tue 29 00 12PM 2000-02-29 12:34:56 +0000 %",
            ),
            (
                1_798_761_599,
                "2026-12-31 23:59:59 Thursday 365 December Dec Thu 31 26 11PM 2026-12-31 23:59:59 +0000 %",
            ),
            (
                4_107_542_400,
                "2100-03-01 00:00:00 Monday 060 March Mar Mon  1 00 12AM 2100-03-01 00:00:00 +0000 %",
            ),
        ] {
            assert_eq!(strftime(all, seconds).as_deref(), Some(expected));
        }
        assert_eq!(strftime("%Q", 0), None);
        assert_eq!(strftime("%", 0), None);
    }
}
