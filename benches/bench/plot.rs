//! The plot: one group of bars per row, as long as the time on a logarithmic scale, written as plain SVG.
//!
//! A page of text, no crate: bars and labels are all it needs.

use std::fmt::Write;

use super::report::Row;

const WIDTH: f64 = 900.0;
const LABELS: f64 = 250.0;
const BAR: f64 = 14.0;
const GAP: f64 = 16.0;

fn colour(subject: &str) -> &'static str {
    match subject {
        "native" | "sdk" => "#888888",
        "swamp" => "#2a7f3f",
        "rclone" => "#c05a2c",
        "s3fs" => "#3060a8",
        _ => "#7fbf8f",
    }
}

/// The rows as an SVG image.
pub fn svg(rows: &[&Row]) -> String {
    let all = || rows.iter().flat_map(|row| row.samples.iter().flat_map(|(_, samples)| samples.iter().copied()));
    let least = all().fold(f64::INFINITY, f64::min).max(1e-6).log10().floor();
    let most = all().fold(0.0, f64::max).max(1e-5).log10().ceil();
    let at = |seconds: f64| (seconds.max(1e-6).log10() - least) / (most - least).max(1.0) * (WIDTH - LABELS - 90.0);
    let mut body = String::new();
    let mut y = 30.0;
    for row in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(body, r#"<text x="6" y="{:.0}" font-weight="bold">{}</text>"#, y + BAR - 3.0, row.name);
        for (subject, samples) in &row.samples {
            let best = samples.iter().copied().fold(f64::INFINITY, f64::min);
            let (text, length) = (y + BAR - 3.0, at(best).max(1.0));
            let _ = writeln!(
                body,
                r#"<text x="{:.0}" y="{text:.0}" text-anchor="end">{subject}</text><rect x="{LABELS}" y="{y:.0}" width="{length:.1}" height="{:.0}" fill="{}"/><text x="{:.0}" y="{text:.0}">{best:.4} s</text>"#,
                LABELS - 6.0,
                BAR - 2.0,
                colour(subject),
                LABELS + length + 5.0,
            );
            y += BAR;
        }
        y += GAP;
    }
    let title = "Seconds, best run, logarithmic: shorter is faster";
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y:.0}" font-family="sans-serif" font-size="11">
<rect width="100%" height="100%" fill="#ffffff"/><text x="6" y="18" font-size="13">{title}</text>
{body}</svg>
"##
    )
}
