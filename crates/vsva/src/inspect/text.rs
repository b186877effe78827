//! A snapshot as a person reads it.

use std::time::Duration;

use comfy_table::{CellAlignment, Table};

use super::snapshot::{Guest, Numbering, PasidEntry, PasidTable, Snapshot, StageTwo, State};
use crate::term::{self, printable};

/// The whole view, in lines of at most `width` columns: the space, the guests, their PASIDs, and the counters if there
/// is one guest.
pub fn view(snapshot: &Snapshot, width: u16) -> String {
    let mut parts = vec![headline(snapshot), guests(&snapshot.guests, width)];
    if snapshot.guests.iter().any(|guest| !guest.pasids.is_empty()) {
        parts.push(pasids(&snapshot.guests, width));
    }
    if snapshot.guests.iter().any(|guest| !guest.page_groups.is_empty()) {
        parts.push(page_groups(&snapshot.guests, width));
    }
    if let [guest] = snapshot.guests.as_slice() {
        parts.extend(counters(guest));
    }
    parts.join("\n\n")
}

fn headline(snapshot: &Snapshot) -> String {
    let space = &snapshot.space;
    format!(
        "vsva {} serves {}, for {}\n{} PASIDs: {} reserved, {} live, {} parked",
        printable(&snapshot.server),
        match snapshot.guests.len() {
            1 => "1 guest".to_owned(),
            many => format!("{many} guests"),
        },
        rough(Duration::from_millis(snapshot.uptime_ms)),
        space.capacity,
        space.reserved,
        space.live,
        space.parked
    )
}

fn guests(guests: &[Guest], width: u16) -> String {
    let header = [
        "guest",
        "there",
        "lives",
        "vcmd",
        "numbers",
        "table",
        "stage 2",
        "quota",
        "live",
        "parked",
        "descriptors",
        "last end",
    ];
    let mut table = table(&header, width);
    for guest in guests {
        let descriptors = guest.counters.get("descriptors").copied().unwrap_or_default();
        table.add_row([
            printable(&guest.name),
            if guest.connected { "yes" } else { "no" }.to_owned(),
            guest.lives.to_string(),
            guest.vcmd.as_deref().map_or_else(|| "-".to_owned(), printable),
            numbering(guest.numbering).to_owned(),
            table_of(guest.pasid_table).to_owned(),
            stage_two(guest.stage_two).to_owned(),
            guest.quota.to_string(),
            guest.live.to_string(),
            guest.parked.to_string(),
            descriptors.to_string(),
            guest.last_end.map_or_else(|| "-".to_owned(), |end| millis(end.took_us)),
        ]);
    }
    align_right(&mut table, &[2, 7, 8, 9, 10, 11]);
    table.to_string()
}

fn pasids(guests: &[Guest], width: u16) -> String {
    let mut table =
        table(&["guest", "PASID", "host's", "state", "entry", "age", "domain", "held by"], width);
    for guest in guests {
        for entry in &guest.pasids {
            table.add_row(pasid(guest, entry));
        }
        if guest.pasids_left_out > 0 {
            let more = format!("{} more", guest.pasids_left_out);
            table.add_row([&printable(&guest.name), &more]);
        }
    }
    align_right(&mut table, &[1, 2, 5, 6]);
    table.to_string()
}

fn pasid(guest: &Guest, entry: &PasidEntry) -> [String; 8] {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    [
        printable(&guest.name),
        format!("{:#x}", entry.guest),
        or_dash(entry.host.map(|host| format!("{host:#x}"))),
        state(entry.state).to_owned(),
        if entry.bound { "bound" } else { "-" }.to_owned(),
        or_dash(entry.age_ms.map(|age| rough(Duration::from_millis(age)))),
        or_dash(entry.domain.map(|domain| format!("{domain:#x}"))),
        or_dash((!entry.holders.is_empty()).then(|| printable(&entry.holders.join(", ")))),
    ]
}

/// The page requests that nobody has answered, and whose they are.
fn page_groups(guests: &[Guest], width: u16) -> String {
    let mut table =
        table(&["guest", "unanswered page requests of", "PASID", "group", "for"], width);
    for guest in guests {
        for group in &guest.page_groups {
            table.add_row([
                printable(&guest.name),
                printable(&group.device),
                group.pasid.map_or_else(|| "-".to_owned(), |pasid| format!("{pasid:#x}")),
                group.group.to_string(),
                group
                    .age_ms
                    .map_or_else(|| "-".to_owned(), |age| rough(Duration::from_millis(age))),
            ]);
        }
        if guest.page_groups_left_out > 0 {
            let more = format!("{} more", guest.page_groups_left_out);
            table.add_row([&printable(&guest.name), &more]);
        }
    }
    align_right(&mut table, &[2, 3, 4]);
    table.to_string()
}

/// What was counted for a guest, two to a line, but for what never happened.
fn counters(guest: &Guest) -> Option<String> {
    let counted = guest.counters.iter().filter(|(_, count)| **count > 0);
    let cells: Vec<String> =
        counted.map(|(name, count)| format!("  {:<24}{count:>16}", printable(name))).collect();
    let lines: Vec<_> = cells.chunks(2).map(<[String]>::concat).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

fn table(header: &[&str], width: u16) -> Table {
    let mut table = term::table(width);
    table.set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((1, 0));
    }
    table
}

fn align_right(table: &mut Table, columns: &[usize]) {
    for column in columns {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

fn numbering(numbering: Numbering) -> &'static str {
    match numbering {
        Numbering::Identity => "identity",
        Numbering::Private => "private",
    }
}

fn table_of(owner: PasidTable) -> &'static str {
    match owner {
        PasidTable::Guest => "guest's",
        PasidTable::Host => "host's",
    }
}

fn stage_two(layout: StageTwo) -> &'static str {
    match layout {
        StageTwo::None => "-",
        StageTwo::Identity => "identity",
        StageTwo::Shuffled => "shuffled",
    }
}

fn state(state: State) -> &'static str {
    match state {
        State::Live => "live",
        State::Parked => "parked",
        State::Own => "own",
    }
}

fn millis(microseconds: u64) -> String {
    format!("{:.1} ms", microseconds as f64 / 1e3)
}

/// A length of time in its largest unit or two.
fn rough(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0..=9) => format!("{:.1} s", time.as_secs_f64()),
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}
