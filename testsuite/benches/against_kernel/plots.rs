//! The figures as plots, for the documents.

use super::cases;
use super::figures;
use super::latency;
use super::report::Report;
use super::sides::Merger;
use plotters::prelude::*;
use std::error::Error;
use std::path::Path;

type Drawn = Result<(), Box<dyn Error>>;

const SIZE: (u32, u32) = (760, 380);
const OURS: RGBColor = RGBColor(0x1b, 0x6c, 0xa8);
const KERNEL: RGBColor = RGBColor(0xd9, 0x5f, 0x02);
const NOBODY: RGBColor = RGBColor(0x66, 0x66, 0x66);

/// Draws what there is in the report.
pub fn draw(report: &Report, directory: &Path) -> Drawn {
    std::fs::create_dir_all(directory)?;
    if report.cases.values().any(|case| case.rounds.len() == 2) {
        ratios(report, &directory.join("ratios.svg"))?;
    }
    for (name, samples) in &report.cases {
        if ["clones", "files"].contains(&name.as_str()) && samples.curves.len() == 2 {
            let file = directory.join(format!("{name}.svg"));
            converging(name, samples, &file)?;
        }
    }
    if report.latency.len() == latency::WHO.len() {
        for (kind, name) in ["read", "write"].into_iter().enumerate() {
            latencies(
                report,
                kind,
                name,
                &directory.join(format!("latency-{name}.svg")),
            )?;
        }
    }
    Ok(())
}

/// Time and CPU of ours over the kernel's, each workload a pair of bars.
fn ratios(report: &Report, file: &Path) -> Drawn {
    let keys = [
        (figures::CONVERGE, "time to converge", OURS),
        (figures::CONVERGE_CPU, "CPU to converge", KERNEL),
    ];
    let rows: Vec<(&str, Vec<Option<f64>>)> = cases::ALL
        .iter()
        .filter_map(|case| {
            let samples = report.cases.get(case.name)?;
            let ratio = |key| {
                let ours = samples.median(Merger::Ours, key)?;
                let kernel = samples.median(Merger::Kernel, key)?;
                Some(ours / kernel).filter(|ratio| ratio.is_finite())
            };
            Some((case.name, keys.iter().map(|(key, ..)| ratio(key)).collect()))
        })
        .collect();
    let all = rows.iter().flat_map(|(_, ratios)| ratios).flatten();
    let top = all.copied().fold(1.1, f64::max) * 1.1;
    let columns = rows.len() as f64;
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("ours / kernel (less is better)", ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(45)
        .build_cartesian_2d(0.0..columns, 0.0..top)?;
    let name = |x: &f64| {
        let is_here = |row: usize| (row as f64 + 0.5 - x).abs() < 0.01;
        let row = rows.iter().enumerate().find(|(row, _)| is_here(*row));
        row.map_or(String::new(), |(_, (name, _))| (*name).to_owned())
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(2 * rows.len() + 1)
        .x_label_formatter(&name)
        .draw()?;
    for (place, (_, title, colour)) in keys.into_iter().enumerate() {
        let bars = rows.iter().enumerate().filter_map(|(row, (_, ratios))| {
            let left = row as f64 + 0.15 + 0.35 * place as f64;
            let corners = [(left, 0.0), (left + 0.33, ratios[place]?)];
            Some(Rectangle::new(corners, colour.filled()))
        });
        chart
            .draw_series(bars)?
            .label(title)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
    }
    chart.draw_series(LineSeries::new([(0.0, 1.0), (columns, 1.0)], BLACK))?;
    legend(&mut chart)?;
    Ok(root.present()?)
}

/// The part of the expected pages that is shared, over time.
fn converging(name: &str, samples: &figures::Samples, file: &Path) -> Drawn {
    let seconds = samples.curves.values().flatten().map(|point| point.0);
    let end = seconds.fold(0.0, f64::max) * 1.02;
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!(
        "{name}, {} MiB each: part of the pages that is shared",
        samples.mib
    );
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(45)
        .build_cartesian_2d(0.0..end, 0.0..1.0)?;
    chart.configure_mesh().x_desc("seconds").draw()?;
    for (merger, title, colour) in [
        (Merger::Ours, "ours", OURS),
        (Merger::Kernel, "kernel", KERNEL),
    ] {
        let points = samples.curves.get(&merger).into_iter().flatten().copied();
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(title)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 15, y)], colour.stroke_width(2)));
    }
    legend(&mut chart)?;
    Ok(root.present()?)
}

/// Percentiles of accesses, for each who merges.
fn latencies(report: &Report, kind: usize, name: &str, file: &Path) -> Drawn {
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let parts = latency::PARTS;
    let of = |who: &str| -> Vec<f64> {
        let rounds = report.latency.get(who).map_or(&[][..], Vec::as_slice);
        let all = latency::medians(rounds);
        all.into_iter()
            .skip(kind * parts.len())
            .take(parts.len())
            .collect()
    };
    let top = latency::WHO
        .iter()
        .flat_map(|who| of(who))
        .fold(100.0, f64::max)
        * 1.5;
    let last = parts.len() as f64 - 1.0;
    let mut chart = ChartBuilder::on(&root)
        .caption(
            format!("{name} of a page: nanoseconds by percentile"),
            ("sans-serif", 18),
        )
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..last, (10.0..top).log_scale())?;
    let label = |x: &f64| {
        let is_here = |place: usize| (place as f64 - x).abs() < 0.01;
        let part = parts.iter().enumerate().find(|(place, _)| is_here(*place));
        part.map_or(String::new(), |(_, part)| (*part).to_owned())
    };
    chart
        .configure_mesh()
        .x_labels(parts.len())
        .x_label_formatter(&label)
        .y_desc("ns")
        .draw()?;
    for (who, colour) in latency::WHO.into_iter().zip([NOBODY, KERNEL, OURS]) {
        let points = of(who)
            .into_iter()
            .enumerate()
            .map(|(x, ns)| (x as f64, ns));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(who)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 15, y)], colour.stroke_width(2)));
    }
    legend(&mut chart)?;
    Ok(root.present()?)
}

fn legend<'a, C>(chart: &mut ChartContext<'a, SVGBackend<'a>, C>) -> Drawn
where
    C: CoordTranslate,
{
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    Ok(())
}
