//! Charts as SVG, written by hand: lines over time, and points with names. The colours follow the
//! reader's: dark ink on nothing, or light ink where dark is preferred.

use std::fmt::Write as _;

/// A chart of one plane.
#[derive(Debug)]
pub(crate) struct Chart {
    pub(crate) title: String,
    /// What is along the axes.
    pub(crate) x: String,
    pub(crate) y: String,
    /// The least and the most of the axes.
    pub(crate) from: (f64, f64),
    pub(crate) to: (f64, f64),
    marks: String,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 44.0;

/// Colours that can be told apart on white and on black, also by the colour-blind (after Okabe and
/// Ito).
pub(crate) const COLOURS: [&str; 6] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9"];

const STYLE: &str = "svg{color-scheme:light dark;--ink:#222;--faint:#bbb}\
@media(prefers-color-scheme:dark){svg{--ink:#ddd;--faint:#555}}\
text{font:12px system-ui,sans-serif;fill:var(--ink)}\
.title{font-size:14px;font-weight:600}.grid{stroke:var(--faint);stroke-width:.5}\
.axis{stroke:var(--ink)}.line{fill:none;stroke-width:1.5;stroke-linejoin:round}";

impl Chart {
    /// An empty one. Axes of no length get one.
    pub(crate) fn new(title: &str, (x, y): (&str, &str), from: (f64, f64), to: (f64, f64)) -> Self {
        let to = (to.0.max(from.0 + 1e-9), to.1.max(from.1 + 1e-9));
        let (title, x, y) = (escape(title), escape(x), escape(y));
        Self { title, x, y, from, to, marks: String::new() }
    }

    /// A line through points that are sorted along x; steps, since counts do not slide.
    pub(crate) fn steps(&mut self, points: impl IntoIterator<Item = (f64, f64)>, colour: &str) {
        let mut path = String::new();
        for (x, y) in points {
            let (x, y) = self.place(x, y);
            if path.is_empty() {
                put(&mut path, format_args!("M{x:.1} {y:.1}"));
            } else {
                put(&mut path, format_args!("H{x:.1}V{y:.1}"));
            }
        }
        let line = format_args!("<path class=\"line\" stroke=\"{colour}\" d=\"{path}\"/>\n");
        put(&mut self.marks, line);
    }

    /// A point, with a name if it has one.
    pub(crate) fn point(&mut self, (x, y): (f64, f64), colour: &str, name: &str) {
        let (x, y) = self.place(x, y);
        let name = escape(name);
        put(
            &mut self.marks,
            format_args!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"><title>{name}\
                 </title></circle>\n"
            ),
        );
    }

    /// A dashed line across.
    pub(crate) fn level(&mut self, y: f64) {
        let (_, y) = self.place(self.from.0, y);
        let right = WIDTH - RIGHT;
        put(
            &mut self.marks,
            format_args!(
                "<path class=\"axis\" stroke-dasharray=\"4 4\" d=\"M{LEFT} {y:.1}H{right}\"/>\n"
            ),
        );
    }

    /// Names beside colours, above the plane.
    pub(crate) fn legend(&mut self, names: &[(&str, &str)]) {
        let mut x = WIDTH - RIGHT;
        for (name, colour) in names.iter().rev() {
            x -= 26.0 + 6.8 * name.len() as f64;
            let (mark, text, name) = (x + 5.0, x + 14.0, escape(name));
            put(
                &mut self.marks,
                format_args!(
                    "<circle cx=\"{mark:.1}\" cy=\"16\" r=\"5\" fill=\"{colour}\"/>\
                     <text x=\"{text:.1}\" y=\"20\">{name}</text>\n"
                ),
            );
        }
    }

    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        let share = |at: f64, from: f64, to: f64| ((at - from) / (to - from)).clamp(0.0, 1.0);
        let across = share(x, self.from.0, self.to.0) * (WIDTH - LEFT - RIGHT);
        let up = share(y, self.from.1, self.to.1) * (HEIGHT - TOP - BOTTOM);
        (LEFT + across, HEIGHT - BOTTOM - up)
    }

    fn axes(&self) -> String {
        let mut axes = String::new();
        let (right, floor) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in ticks(self.from.1, self.to.1) {
            let (_, y) = self.place(self.from.0, tick);
            let (text, below) = (LEFT - 6.0, y + 4.0);
            put(
                &mut axes,
                format_args!(
                    "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>\
                     <text x=\"{text}\" y=\"{below:.1}\" text-anchor=\"end\">{tick}</text>\n"
                ),
            );
        }
        for tick in ticks(self.from.0, self.to.0) {
            let (x, _) = self.place(tick, self.from.1);
            let (end, text) = (floor + 4.0, floor + 17.0);
            put(
                &mut axes,
                format_args!(
                    "<path class=\"axis\" d=\"M{x:.1} {floor}V{end}\"/>\
                     <text x=\"{x:.1}\" y=\"{text}\" text-anchor=\"middle\">{tick}</text>\n"
                ),
            );
        }
        put(&mut axes, format_args!("<path class=\"axis\" d=\"M{LEFT} {floor}H{right}\"/>\n"));
        axes
    }
}

impl std::fmt::Display for Chart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { title, x, y, marks, .. } = self;
        let (middle, foot) = ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 6.0);
        writeln!(
            f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             role=\"img\" aria-label=\"{title}\">\n<style>{STYLE}</style>"
        )?;
        writeln!(f, "<text class=\"title\" x=\"8\" y=\"20\">{title}</text>")?;
        f.write_str(&self.axes())?;
        writeln!(f, "<text x=\"{middle}\" y=\"{foot}\" text-anchor=\"middle\">{x}</text>")?;
        writeln!(
            f,
            "<text transform=\"translate(14 {:.0}) rotate(-90)\" text-anchor=\"middle\">{y}</text>",
            (TOP + HEIGHT - BOTTOM) / 2.0
        )?;
        writeln!(f, "{marks}</svg>")
    }
}

/// Round figures between two limits, four to nine of them.
fn ticks(from: f64, to: f64) -> Vec<f64> {
    let rough = (to - from) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    let step = step.into_iter().find(|step| *step >= rough * 0.999).unwrap_or(rough);
    let first = (from / step).ceil();
    let ticks = (0..10).map(|n| (first + f64::from(n)) * step);
    // Without the noise of the last digits.
    let rounded = ticks.map(|tick| (tick / step).round() * step).map(|it| (it * 1e6).round() / 1e6);
    rounded.take_while(|tick| *tick <= to + step * 1e-6).collect()
}

fn put(text: &mut String, words: std::fmt::Arguments<'_>) {
    text.write_fmt(words).expect("writing to a string does not fail");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(0.0, 10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(0.0, 1.0), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!(ticks(0.0, 3660.0), [0.0, 1000.0, 2000.0, 3000.0]);
    }

    #[test]
    fn a_chart_is_well_formed_and_says_what_it_shows() {
        let mut chart = Chart::new("a < b", ("time", "pods"), (0.0, 0.0), (10.0, 4.0));
        chart.steps([(0.0, 0.0), (5.0, 4.0), (10.0, 1.0)], COLOURS[0]);
        chart.point((5.0, 2.0), COLOURS[1], "slo & more");
        chart.level(2.0);
        chart.legend(&[("slo", COLOURS[0])]);
        let svg = chart.to_string();
        assert!(svg.contains("M58.0 256.0H401.0V34.0H744.0V200.5"), "{svg}");
        assert!(svg.contains("slo &amp; more") && svg.contains("a &lt; b"));
        let (open, close) = (svg.matches("<text").count(), svg.matches("</text>").count());
        assert_eq!(open, close);
        assert!(svg.contains("prefers-color-scheme:dark"));
    }
}
