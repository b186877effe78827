//! Three guests on one server at the same time: two that take their PASIDs from the host, of which one is killed, and
//! one that copies by plain addresses throughout.
//!
//! ```text
//!   first   fill, over quota │ come and go │ free the other's │ come and go │   …    │ free all
//!   second  fill, over quota │ come and go │ free the other's │ come and go │ killed
//!   copying ─────────── copies, contents compared, bound anew for each round ───────────────
//! ```

mod books;
mod tenant;
mod twins;

use iommu::Numbering;
use tenant::{Go, Tenant};

use super::super::scenario::Tenants;
use super::super::server::PasidRecord;
use super::*;

/// How long a look at one guest takes at most, if it says nothing.
const LOOK: Duration = Duration::from_millis(5);

/// Rounds that guests do beside each other between two events: of numbers that come and go, and of copies.
const ROUNDS: u64 = 2;

/// The guests' places in the party, and their names in checks.
const FIRST: usize = 0;
const SECOND: usize = 1;
const COPYING: usize = 2;
const NAMES: [&str; 3] = ["first 6.1", "second 6.1", "copying"];

/// The guests under way.
struct Party<'a> {
    run: &'a Run,
    tenants: Vec<Tenant>,
}

/// What went wrong, and with which guest; with none of them in particular if `None`.
struct Fall {
    who: Option<usize>,
    trouble: Trouble,
}

/// Says whose trouble it is.
fn of<T: Into<Trouble>>(who: usize) -> impl Fn(T) -> Fall {
    move |trouble| Fall { who: Some(who), trouble: trouble.into() }
}

impl Runner<'_> {
    /// Runs `run` with its three guests.
    pub(super) fn tenants(&mut self, run: &Run, plan: &Tenants) -> Result<(), Stopped> {
        let [first, second] = plan.paravirtual;
        let numbering = first.config.numbering;
        let guests = [first, second, plan.copying].into_iter().zip(NAMES);
        let Some(mut party) = self.meet_up(run, guests.collect())? else { return Ok(()) };
        let ids: Vec<_> = party.tenants.iter().map(|tenant| tenant.booted.id).collect();
        if let Err(fall) = self.story(&mut party, numbering) {
            return self.break_up(party, &fall);
        }
        self.go_home(party)?;
        self.close_books(run, &ids);
        Ok(())
    }

    /// Boots guests with their names, all at the same time.
    fn meet_up<'a>(
        &mut self,
        run: &'a Run,
        guests: Vec<(Kind, &'static str)>,
    ) -> Result<Option<Party<'a>>, Stopped> {
        let (kinds, names): (Vec<_>, Vec<_>) = guests.into_iter().unzip();
        let Some(booted) = self.boot_together(run, kinds)? else { return Ok(None) };
        let tenants = booted.into_iter().zip(names).map(|(one, name)| Tenant::new(one, name));
        Ok(Some(Party { run, tenants: tenants.collect() }))
    }

    /// Ends all guests that are still there.
    fn go_home(&mut self, party: Party<'_>) -> Result<(), Stopped> {
        for tenant in party.tenants {
            if tenant.is_killed() {
                self.add_counters(tenant.booted.id);
            } else {
                self.retire(Some(tenant.booted))?;
            }
        }
        Ok(())
    }

    /// Starts all guests, then waits for each.
    fn boot_together(
        &mut self,
        run: &Run,
        kinds: Vec<Kind>,
    ) -> Result<Option<Vec<Booted>>, Stopped> {
        let launched: Vec<_> = kinds
            .into_iter()
            .map(|kind| run.kind_of(kind))
            .map(|kind| (kind, self.launch(kind)))
            .collect();
        let mut launched = launched.into_iter();
        let mut all = Vec::new();
        while let Some((kind, next)) = launched.next() {
            let welcomed = self.welcome(&run.name, kind, next);
            let Ok(Some(booted)) = welcomed else {
                let waiting = launched.filter_map(|(_, one)| Some(one.ok()?.booted));
                for Booted { guest, id, .. } in all.into_iter().chain(waiting.collect::<Vec<_>>()) {
                    drop(guest);
                    self.account(id);
                }
                return welcomed.map(|_| None);
            };
            all.push(booted);
        }
        Ok(Some(all))
    }

    /// What happens, in order.
    fn story(&mut self, party: &mut Party<'_>, numbering: Numbering) -> Result<(), Fall> {
        for (who, tenant) in party.tenants.iter_mut().enumerate() {
            let run = if who == COPYING { scenario::STREAM } else { scenario::TENANT };
            tenant.begin(self, run).map_err(of(who))?;
        }
        let all = [FIRST, SECOND, COPYING];
        self.rounds(party, "all guests are busy beside each other", &all)?;
        self.meet(party, numbering)?;
        for (who, other) in [(FIRST, SECOND), (SECOND, FIRST)] {
            let strangers = self.reach_for_strangers(party, who, other)?;
            if strangers == 0 && numbering == Numbering::Identity {
                let check = format!("{}: the {} has PASIDs of its own", NAMES[who], NAMES[other]);
                self.record(&party.run.name, Check { check, ok: false, detail: String::new() });
            }
        }
        self.rounds(party, "all guests go on after that", &all)?;
        self.kill_one(party)?;
        self.rounds(party, "the others go on after its death", &[FIRST, COPYING])?;
        self.finish(party)
    }

    /// Lets guests go on until each of them has done some rounds more.
    fn rounds(&mut self, party: &mut Party<'_>, check: &str, who: &[usize]) -> Result<(), Fall> {
        let before: Vec<_> = party.tenants.iter().map(Tenant::rounds).collect();
        for &who in who {
            party.let_go(who, Go::On)?;
        }
        let more = |party: &Party<'_>, who: usize| party.tenants[who].rounds() - before[who];
        self.until(party, check, |party| {
            let early = who.iter().any(|&who| party.tenants[who].is_over());
            early || who.iter().all(|&who| more(party, who) >= ROUNDS)
        })?;
        who.iter().try_for_each(|&who| party.goes_on(who))?;
        let name = |who: usize| party.tenants[who].name;
        let done = who.iter().map(|&who| format!("{}: {} rounds", name(who), more(party, who)));
        let detail = done.collect::<Vec<_>>().join(", ");
        self.record(&party.run.name, Check { check: check.to_owned(), ok: true, detail });
        Ok(())
    }

    /// Both 6.1 guests stand still with all that they can have, and that is compared.
    fn meet(&mut self, party: &mut Party<'_>, numbering: Numbering) -> Result<(), Fall> {
        for who in [FIRST, SECOND] {
            party.let_go(who, Go::Enough)?;
        }
        let stand_still = |party: &Party<'_>| {
            [FIRST, SECOND].iter().all(|&who| party.tenants[who].waits_at(sync::STRANGERS))
        };
        self.until(party, "the meeting of the 6.1 guests", stand_still)?;
        let [first, second] = [self.record_of(party, FIRST)?, self.record_of(party, SECOND)?];
        let check = books::compare_numbers(numbering, &first, &second);
        self.record(&party.run.name, check);
        Ok(())
    }

    /// `who` tries to free what `other` has, which stands still meanwhile. Says how many numbers that were.
    fn reach_for_strangers(
        &mut self,
        party: &mut Party<'_>,
        who: usize,
        other: usize,
    ) -> Result<usize, Fall> {
        let [own, theirs] = [self.record_of(party, who)?, self.record_of(party, other)?];
        let pasids = books::strangers(&own, &theirs);
        let count = pasids.len();
        let tenant = &mut party.tenants[who];
        tenant.hold();
        tenant.answer(&ToGuest::Pasids { pasids }).map_err(of(who))?;
        let what = "the end of frees of another guest's PASIDs";
        self.until(party, what, |party| party.tenants[who].waits_at(sync::AGAIN))?;
        let now = self.record_of(party, other)?;
        let ok = now == theirs;
        let (before, now) = (theirs.live.len(), now.live.len());
        let detail = if ok {
            format!("{now} numbers as before")
        } else {
            format!("{before} before, {now} now")
        };
        let check = format!("{}: its frees change nothing of the {}'s", NAMES[who], NAMES[other]);
        self.record(&party.run.name, Check { check, ok, detail });
        Ok(count)
    }

    /// The second guest is killed while its numbers come and go.
    fn kill_one(&mut self, party: &mut Party<'_>) -> Result<(), Fall> {
        let limit = party.run.scenario.limit;
        let wait = Wait::new("the second guest's having half of its PASIDs", limit);
        let quota = party.tenants[SECOND].booted.kind.config.quota;
        // In the middle of a round, and not with empty hands.
        let out = loop {
            self.look(party)?;
            let out = self.record_of(party, SECOND)?.live.len();
            if !party.tenants[SECOND].waits() && 2 * out >= quota as usize {
                break out;
            }
            wait.check().map_err(of(SECOND))?;
        };
        self.kill(party, SECOND, &format!("{out} of {quota} PASIDs out just before"))
    }

    /// Kills a guest, called the second one; `state`: what was the case just before.
    fn kill(&mut self, party: &mut Party<'_>, who: usize, state: &str) -> Result<(), Fall> {
        let (run, booted) = (party.run, &party.tenants[who].booted);
        let (id, quota) = (booted.id, booted.kind.config.quota);
        let before = self.server.space();
        party.tenants[who].kill().map_err(of(who))?;
        let check = "the second guest's QEMU is killed (SIGKILL)".to_owned();
        self.record(&run.name, Check { check, ok: true, detail: state.to_owned() });
        let took = self.server.wait_gone(id, GONE_LIMIT).map_err(of(who))?;
        let check = "the server frees all of the killed guest".to_owned();
        let detail = format!("in {:.1} ms", took.as_secs_f64() * 1e3);
        self.record(&run.name, Check { check, ok: true, detail });
        let check = books::taken_back(&self.counters(id), quota, before, self.server.space());
        self.record(&run.name, check);
        Ok(())
    }

    /// The first guest gives all back, and the copying one ends.
    fn finish(&mut self, party: &mut Party<'_>) -> Result<(), Fall> {
        for who in [FIRST, COPYING] {
            party.let_go(who, Go::Enough)?;
        }
        self.until(party, "the end of all", |party| party.tenants.iter().all(Tenant::is_over))?;
        let copying = &party.tenants[COPYING];
        let check = copying.undisturbed(&self.counters(copying.booted.id));
        self.record(&party.run.name, check);
        Ok(())
    }

    /// Lets the guests go on until something is the case.
    fn until(
        &mut self,
        party: &mut Party<'_>,
        what: &str,
        is_so: impl Fn(&Party<'_>) -> bool,
    ) -> Result<(), Fall> {
        let wait = Wait::new(what, party.run.scenario.limit);
        while !is_so(party) {
            self.look(party)?;
            wait.check().map_err(|error| Fall { who: None, trouble: error.into() })?;
        }
        Ok(())
    }

    /// Takes what each guest says, if it says something soon.
    fn look(&mut self, party: &mut Party<'_>) -> Result<(), Fall> {
        for (who, tenant) in party.tenants.iter_mut().enumerate() {
            tenant.look(self, &party.run.name).map_err(of(who))?;
        }
        Ok(())
    }

    fn record_of(&self, party: &Party<'_>, who: usize) -> Result<PasidRecord, Fall> {
        self.server.pasids(party.tenants[who].booted.id).map_err(of(who))
    }

    /// Ends all guests after what went wrong with one.
    fn break_up(&mut self, party: Party<'_>, fall: &Fall) -> Result<(), Stopped> {
        let mut console = String::new();
        for (who, tenant) in party.tenants.into_iter().enumerate() {
            // Of all, if it is not known whose fault it is.
            if fall.who.is_none_or(|guilty| guilty == who) {
                console.push_str(&format!("{}:\n{}\n", tenant.name, tenant.booted.guest.console()));
            }
            let Booted { guest, id, .. } = tenant.booted;
            drop(guest);
            self.account(id);
        }
        self.fail(&party.run.name, "the scenario runs to its end", &fall.trouble, &console)
    }

    /// Nobody is left: what was granted is compared with what came back.
    fn close_books(&mut self, run: &Run, ids: &[GuestId]) {
        // The third numbers its PASIDs itself.
        for (id, name) in ids.iter().zip(NAMES).take(COPYING) {
            let check = books::balance(name, &self.counters(*id));
            self.record(&run.name, check);
        }
        self.close_hosts_books(run);
    }

    /// Nobody is left: nor is anything of them on the host.
    fn close_hosts_books(&mut self, run: &Run) {
        let check = books::nothing_left(self.server.space());
        self.record(&run.name, check);
        if let Some(calls) = self.server.encoded_calls() {
            self.record(&run.name, books::by_bytes(calls));
        }
    }
}

impl Party<'_> {
    /// Fails if a guest has ended its scenario, which it was not asked to.
    fn goes_on(&self, who: usize) -> Result<(), Fall> {
        match self.tenants[who].is_over() {
            true => Err(of(who)(GuestError::Unexpected("Done"))),
            false => Ok(()),
        }
    }

    fn let_go(&mut self, who: usize, go: Go) -> Result<(), Fall> {
        self.tenants[who].let_go(go).map_err(of(who))
    }
}

#[cfg(test)]
mod tests;
