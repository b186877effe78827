//! A snapshot as Prometheus takes it: the OpenMetrics text form.

use std::collections::BTreeSet;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::snapshot::{Guest, PasidTable, Snapshot, StageTwo, OF_NOW};

/// What every metric's name begins with.
const PREFIX: &str = "vsva";

/// The snapshot as metrics. Every count of a guest is a counter of its own, labelled with the guest.
pub fn text(snapshot: Snapshot) -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Metrics(snapshot)));
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Metrics(Snapshot);

impl Collector for Metrics {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        self.server(&mut to)?;
        self.guests(&mut to)?;
        self.counters(&mut to)
    }
}

/// Name and value of each label of a series.
type Labels<'a> = Vec<(&'a str, &'a str)>;

impl Metrics {
    fn server(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let uptime = seconds(self.0.uptime_ms.saturating_mul(1000));
        times(to, "uptime", "How long the server has run", [(Vec::new(), uptime)])?;
        let asked = &self.0.inspections;
        let one = |count| [(Vec::new(), count)];
        counters(to, "inspect_answers", "Snapshots given to vsva inspect", one(asked.answers))?;
        counters(to, "inspect_refusals", "Requests of it that were refused", one(asked.refusals))?;
        let space = &self.0.space;
        let kinds = [
            ("capacity", space.capacity),
            ("reserved", space.reserved),
            ("live", space.live),
            ("parked", space.parked),
        ];
        let series = kinds.map(|(kind, count)| (vec![("kind", kind)], count.into()));
        gauges(to, "pasids", "PASIDs of the host", series)
    }

    fn guests(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let of_each = |value: fn(&Guest) -> u64| {
            self.0.guests.iter().map(move |guest| (vec![label(guest)], value(guest)))
        };
        let there = of_each(|guest| guest.connected.into());
        gauges(to, "guest_connected", "Whether a guest is in the place", there)?;
        let quotas = of_each(|guest| guest.quota.into());
        gauges(to, "guest_quota", "PASIDs that the guest can have at a time", quotas)?;
        let states = self.0.guests.iter().flat_map(|guest| {
            [("live", guest.live), ("parked", guest.parked)]
                .map(|(state, count)| (vec![label(guest), ("state", state)], count.into()))
        });
        gauges(to, "guest_pasids", "PASIDs granted to the guest, by what is with them", states)?;
        let bound = of_each(|guest| guest.bound.into());
        gauges(to, "guest_bound", "PASIDs of the guest in a table of the host's", bound)?;
        let tables = of_each(|guest| (guest.pasid_table == PasidTable::Host).into());
        gauges(to, "guest_host_table", "Whether the host owns the guest's PASID table", tables)?;
        let stages = of_each(|guest| (guest.stage_two != StageTwo::None).into());
        gauges(to, "guest_stage_two", "Whether the guest is above a second stage", stages)?;
        let oldest = self.0.guests.iter().map(|guest| {
            let ages = guest.page_groups.iter().filter_map(|group| group.age_ms);
            let oldest = ages.max().unwrap_or_default();
            (vec![label(guest)], seconds(oldest.saturating_mul(1000)))
        });
        let about = "For how long the oldest page request of the guest has been unanswered";
        times(to, "guest_page_request_oldest", about, oldest)?;
        let ended = || self.0.guests.iter().filter_map(|guest| Some((guest, guest.last_end?)));
        let took = ended().map(|(guest, end)| (vec![label(guest)], seconds(end.took_us)));
        times(to, "guest_last_end", "How long the end of the place's last guest took", took)?;
        let reclaimed = ended().map(|(guest, end)| (vec![label(guest)], seconds(end.reclaim_us)));
        times(to, "guest_last_reclaim", "How long taking back its PASIDs took", reclaimed)
    }

    fn counters(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let guests = &self.0.guests;
        let lives = guests.iter().map(|guest| (vec![label(guest)], guest.lives));
        counters(to, "lives", "Guests that were in the place", lives)?;
        let names: BTreeSet<&String> =
            guests.iter().flat_map(|guest| guest.counters.keys()).collect();
        for name in names.into_iter().filter(|name| is_metric_name(name)) {
            let counted =
                guests.iter().filter_map(|guest| Some((guest, *guest.counters.get(name)?)));
            let series = counted.map(|(guest, count)| (vec![label(guest)], count));
            let words = name.replace('_', " ");
            if OF_NOW.contains(&name.as_str()) {
                gauges(to, name, &format!("Now: {words}"), series)?;
            } else {
                counters(to, name, &format!("Counted since the place was made: {words}"), series)?;
            }
        }
        Ok(())
    }
}

fn label(guest: &Guest) -> (&str, &str) {
    ("guest", &guest.name)
}

fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e6
}

/// Whether a server's name for a counter can be a metric's.
fn is_metric_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn gauges<'a>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    about: &str,
    series: impl IntoIterator<Item = (Labels<'a>, u64)>,
) -> fmt::Result {
    let series = series.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value)));
    family(to, name, about, None, MetricType::Gauge, series)
}

fn times<'a>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    about: &str,
    series: impl IntoIterator<Item = (Labels<'a>, f64)>,
) -> fmt::Result {
    let series = series.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value)));
    family(to, name, about, Some(&Unit::Seconds), MetricType::Gauge, series)
}

fn counters<'a>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    about: &str,
    series: impl IntoIterator<Item = (Labels<'a>, u64)>,
) -> fmt::Result {
    let series = series.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value)));
    family(to, name, about, None, MetricType::Counter, series)
}

/// All series of one name.
fn family<'a>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    about: &str,
    unit: Option<&Unit>,
    kind: MetricType,
    series: impl Iterator<Item = (Labels<'a>, impl EncodeMetric)>,
) -> fmt::Result {
    let mut family = to.encode_descriptor(name, about, unit, kind)?;
    for (labels, value) in series {
        if labels.is_empty() {
            return value.encode(family);
        }
        value.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
