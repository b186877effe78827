//! Two guests on one server at the same time that number their PASIDs themselves, so that they use the same ones. The
//! host owns the PASID tables and has a number of its own for each.
//!
//! ```text
//!   first   ──── copies, contents compared, bound anew for each round ────────────────
//!   second  ──── copies, contents compared, bound anew for each round ─── killed
//! ```

use super::*;

/// The guests' names in checks, by their places in the party.
const NAMES: [&str; 2] = ["first", "second"];

impl Runner<'_> {
    /// Runs `run` with its two guests.
    pub(in super::super) fn twins(&mut self, run: &Run) -> Result<(), Stopped> {
        let guests = NAMES.map(|name| (run.scenario.kind, name));
        let Some(mut party) = self.meet_up(run, guests.into())? else { return Ok(()) };
        if let Err(fall) = self.twins_story(&mut party) {
            return self.break_up(party, &fall);
        }
        self.go_home(party)?;
        self.close_hosts_books(run);
        Ok(())
    }

    /// What happens, in order.
    fn twins_story(&mut self, party: &mut Party<'_>) -> Result<(), Fall> {
        for (who, tenant) in party.tenants.iter_mut().enumerate() {
            tenant.begin(self, scenario::STREAM).map_err(of(who))?;
        }
        let both = [FIRST, SECOND];
        self.rounds(party, "both guests copy beside each other", &both)?;
        let (first, second) = self.both_bound(party)?;
        let check = books::compare_bound(&first, &second);
        self.record(&party.run.name, check);
        self.rounds(party, "both guests go on", &both)?;
        let (_, second) = self.both_bound(party)?;
        let state = format!("{} PASIDs bound just before", second.bound.len());
        self.kill(party, SECOND, &state)?;
        self.rounds(party, "the other goes on after its death", &[FIRST])?;
        party.let_go(FIRST, Go::Enough)?;
        self.until(party, "the end of the copies", |party| {
            party.tenants.iter().all(Tenant::is_over)
        })?;
        let first = &party.tenants[FIRST];
        let check = first.undisturbed(&self.counters(first.booted.id));
        self.record(&party.run.name, check);
        Ok(())
    }

    /// What the host has on record of both, at a moment at which both have PASIDs bound.
    fn both_bound(&mut self, party: &mut Party<'_>) -> Result<(PasidRecord, PasidRecord), Fall> {
        let wait = Wait::new("both guests' having PASIDs bound", party.run.scenario.limit);
        loop {
            self.look(party)?;
            [FIRST, SECOND].into_iter().try_for_each(|who| party.goes_on(who))?;
            let first = self.record_of(party, FIRST)?;
            let second = self.record_of(party, SECOND)?;
            // The first one's bindings stood throughout, so they stood at the same time.
            let still = self.record_of(party, FIRST)? == first;
            if still && !first.bound.is_empty() && !second.bound.is_empty() {
                return Ok((first, second));
            }
            wait.check().map_err(of(FIRST))?;
        }
    }
}

#[cfg(test)]
#[path = "twins_tests.rs"]
mod tests;
