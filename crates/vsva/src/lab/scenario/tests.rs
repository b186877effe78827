//! What is run for which names.

use super::*;
use crate::server::Commands;

fn names_of(wanted: &[&str], wishes: Wishes) -> Result<Vec<String>, SelectError> {
    let wanted: Vec<_> = wanted.iter().map(|&name| name.to_owned()).collect();
    Ok(select(&wanted, wishes)?.into_iter().map(|run| run.name).collect())
}

fn with(table: PasidTable) -> Wishes {
    Wishes { table: Some(table), ..Wishes::default() }
}

#[test]
fn names_select_in_running_order() {
    let chosen = names_of(&["kill", "sva-copy", "vcmd"], Wishes::default()).unwrap();
    assert_eq!(chosen, ["sva-copy", "kill", "sva-copy/host", "kill/host", "vcmd"]);
    let all = names_of(&[], Wishes::default()).unwrap();
    let runs: usize = SCENARIOS.iter().map(|scenario| scenario.tables.len()).sum();
    assert_eq!(all.len(), runs);
    assert_eq!(all.last().unwrap(), "tenants-host");
    let error = names_of(&["rebind", "nothing"], Wishes::default()).unwrap_err();
    assert!(error.to_string().contains("\"nothing\"; there are: sva-copy, "));
}

#[test]
fn one_owner_of_the_tables_can_be_wanted() {
    let host = names_of(&["tenants", "rebind"], with(PasidTable::Host)).unwrap();
    assert_eq!(host, ["rebind/host", "tenants/host"]);
    assert_eq!(names_of(&[], with(PasidTable::Host)).unwrap().len(), SCENARIOS.len());
    // What is about the host's tables is left out, unless it was asked for by its name.
    let guest = names_of(&[], with(PasidTable::Guest)).unwrap();
    assert_eq!(guest.len(), SCENARIOS.len() - 1);
    let refused = names_of(&["tenants-host"], with(PasidTable::Guest)).unwrap_err();
    assert_eq!(refused, SelectError::NeedsHostTable { scenario: "tenants-host" });
    let none = Wishes { stage_two: Some(StageTwo::None), ..Wishes::default() };
    assert!(!names_of(&[], none).unwrap().contains(&"stage-two".to_owned()));
    let refused = names_of(&["stage-two"], none).unwrap_err();
    assert_eq!(refused, SelectError::NeedsStageTwo { scenario: "stage-two" });
}

#[test]
fn guests_are_as_the_run_wants_them() {
    let wishes = Wishes { stage_two: Some(StageTwo::Identity), ..with(PasidTable::Host) };
    for run in select(&[], wishes).unwrap() {
        let config = run.kind().config;
        assert_eq!((config.pasid_table, config.stage_two), (PasidTable::Host, StageTwo::Identity));
        let asks = config.commands != Commands::Off;
        assert_eq!(config.numbering == Numbering::Identity, asks, "{}", run.name);
    }
    for run in select(&[], Wishes::default()).unwrap() {
        let single = run.scenario.kind.linux == Linux::Newest;
        assert_eq!(run.kind().config.stage_two == StageTwo::Shuffled, single, "{}", run.name);
    }
}

#[test]
fn the_guest_knows_every_scenario() {
    for scenario in SCENARIOS.iter().filter(|scenario| scenario.plan == Plan::Shared) {
        assert!(scenario::ALL.contains(&scenario.name), "{}", scenario.name);
    }
}
