//! The plot: a group of bars per row, each group to its own scale, with a mark where the goal is; written as plain SVG.
//!
//! A page of text, no crate: bars and labels are all it needs.

use std::fmt::Write;

use super::report::Row;

const WIDTH: f64 = 980.0;
const LABELS: f64 = 170.0;
const BARS: f64 = WIDTH - LABELS - 220.0;
const BAR: f64 = 15.0;
const GAP: f64 = 14.0;
/// Ink of a goal that was met, and of one that was not.
const MET: [&str; 2] = ["#b02020", "#1d6b2f"];

fn colour(subject: &str) -> &'static str {
    match subject {
        "swamp" => "#2a7f3f",
        "rclone" => "#c05a2c",
        "s3fs" => "#3060a8",
        "mount-s3" => "#7a4fa0",
        other if other.starts_with("swamp") => "#7fbf8f",
        _ => "#888888",
    }
}

/// The rows as an SVG image.
pub fn svg(rows: &[&Row]) -> String {
    let mut body = String::new();
    let mut y = 36.0;
    for row in rows {
        let verdicts: Vec<_> = row.samples.iter().map(|(subject, _)| row.verdict(subject)).collect();
        let best: Vec<_> = row.samples.iter().map(|(subject, _)| row.best(subject).unwrap_or(0.0)).collect();
        let most = best.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let at = |value: f64| (value / most * BARS).clamp(1.0, BARS);
        // Writing to a string cannot fail.
        let (name, what) = (escape(&row.name), escape(&row.what));
        let _ = writeln!(body, r#"<text x="6" y="{y:.0}"><tspan font-weight="bold">{name}</tspan>  {what}</text>"#);
        y += 6.0;
        for (((subject, _), verdict), best) in row.samples.iter().zip(verdicts).zip(best) {
            let (text, length, height) = (y + BAR - 4.0, at(best), BAR - 3.0);
            let _ = writeln!(
                body,
                r#"<text x="{:.0}" y="{text:.0}" text-anchor="end">{subject}</text><rect x="{LABELS}" y="{y:.0}" width="{length:.1}" height="{height:.0}" fill="{}"/>"#,
                LABELS - 6.0,
                colour(subject),
            );
            let (mut label, mut ink, mut end) = (row.show(best), "#000000", LABELS + length);
            if let Some(verdict) = verdict {
                let met = if verdict.met { "met" } else { "missed" };
                ink = MET[usize::from(verdict.met)];
                let _ = write!(label, ", goal {} {met}", row.show(verdict.allowed));
                // A goal beyond the longest bar has no place in the picture.
                if verdict.allowed <= most {
                    let x = LABELS + at(verdict.allowed);
                    let (top, bottom) = (y - 1.0, y + height + 1.0);
                    let _ = writeln!(
                        body,
                        r#"<line x1="{x:.1}" x2="{x:.1}" y1="{top:.1}" y2="{bottom:.1}" stroke="{ink}" stroke-width="2"/>"#
                    );
                    end = end.max(x);
                }
            }
            let x = end + 6.0;
            let _ = writeln!(body, r#"<text x="{x:.0}" y="{text:.0}" fill="{ink}">{label}</text>"#);
            y += BAR;
        }
        y += GAP + 6.0;
    }
    let title = "Shorter is better; the best run; each row to its own scale; the line across a bar is its goal";
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y:.0}" font-family="sans-serif" font-size="11">
<rect width="100%" height="100%" fill="#ffffff"/><text x="6" y="18" font-size="13">{title}</text>
{body}</svg>
"##
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
