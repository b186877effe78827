//! What guests may have of a host, from the command line: for all of them, or by name.

use std::fmt;
use std::str::FromStr;

use iommu::Numbering;

use crate::server::{Commands, GuestConfig, PageTimeout, PasidTable, StageTwo};

/// A setting for one guest (`NAME=VALUE`) or for all that have none of their own (`VALUE`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    /// The guest, or all.
    pub guest: Option<String>,
    /// The value.
    pub value: T,
}

impl<T: FromStr> FromStr for Setting<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        let (guest, value) = match text.split_once('=') {
            Some((guest, value)) => (Some(guest.to_owned()), value),
            None => (None, text),
        };
        Ok(Self { guest, value: value.parse()? })
    }
}

/// How guests' PASID numbers relate to the host's, as a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NumberingWord(pub Numbering);

/// A word that names no numbering.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there are identity and private")]
pub struct NoSuchNumbering;

impl FromStr for NumberingWord {
    type Err = NoSuchNumbering;

    fn from_str(word: &str) -> Result<Self, NoSuchNumbering> {
        match word {
            "identity" => Ok(Self(Numbering::Identity)),
            "private" => Ok(Self(Numbering::Private)),
            _ => Err(NoSuchNumbering),
        }
    }
}

/// All settings, in the order in which they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// PASIDs that a guest can have at a time.
    pub quota: Vec<Setting<u32>>,
    /// How its numbers relate to the host's.
    pub numbering: Vec<Setting<NumberingWord>>,
    /// The virtual commands of its unit.
    pub commands: Vec<Setting<Commands>>,
    /// Who owns its PASID table.
    pub pasid_table: Vec<Setting<PasidTable>>,
    /// The host's second stage below it.
    pub stage_two: Vec<Setting<StageTwo>>,
    /// How long it may leave page requests unanswered.
    pub page_request_timeout: Vec<Setting<PageTimeout>>,
}

/// Why settings do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A setting is for a guest that there is not.
    #[error("{option} {name}=…: there is no guest {name:?}; there are {}", Names(known))]
    NoGuest {
        /// The option.
        option: &'static str,
        /// What was named.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The same was said twice.
    #[error("{option} was given twice for {}", guest.as_deref().unwrap_or("all guests"))]
    Twice {
        /// The option.
        option: &'static str,
        /// For whom.
        guest: Option<String>,
    },
    /// Private numbers are the host's to give, and there is no way to ask for one.
    #[error(
        "{guest}: --pasids private needs --vcmd or --pasid-table host: without them a guest numbers its PASIDs itself, \
         and has its own numbers anyway"
    )]
    PrivateWithoutCommands {
        /// The guest.
        guest: String,
    },
    /// Guests that number their PASIDs themselves take the same ones, and one table entry of the host's has one owner.
    #[error(
        "{guest}: --pasids identity does not go with --pasid-table host for several guests without --vcmd: they number \
         their PASIDs themselves and take the same ones; leave --pasids out, or say private"
    )]
    SameNumbers {
        /// The first such guest.
        guest: String,
    },
    /// The quotas cannot all be used up at once.
    #[error("the quotas of {guests} guests add up to {sum} PASIDs, and the host has {capacity} (--quota)")]
    Quotas {
        /// Number of guests.
        guests: usize,
        /// The sum of their quotas.
        sum: u64,
        /// What the host has.
        capacity: u32,
    },
}

/// Names for a sentence, not too many.
struct Names<'a>(&'a [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("none"),
            [one] => f.write_str(one),
            [first, .., last] => write!(f, "{first} to {last}"),
        }
    }
}

impl Shares {
    /// What each of these guests gets.
    ///
    /// # Errors
    /// [`Error`], the first that is found; [`Error::Quotas`] is [`check_quotas`]' to find.
    pub fn of(&self, names: &[String]) -> Result<Vec<GuestConfig>, Error> {
        let otherwise = GuestConfig::default();
        let quota = spread("--quota", &self.quota, names)?;
        let numbering = spread("--pasids", &self.numbering, names)?;
        let commands = spread("--vcmd", &self.commands, names)?;
        let table = spread("--pasid-table", &self.pasid_table, names)?;
        let stage_two = spread("--stage-two", &self.stage_two, names)?;
        let timeout = spread("--page-request-timeout", &self.page_request_timeout, names)?;
        let settings = quota.into_iter().zip(numbering).zip(commands).zip(table).zip(stage_two);
        let settings = settings.zip(timeout);
        let configs =
            settings.map(|(((((quota, numbering), commands), table), stage_two), timeout)| {
                let config = GuestConfig {
                    quota: quota.unwrap_or(otherwise.quota),
                    commands: commands.unwrap_or(otherwise.commands),
                    pasid_table: table.unwrap_or(otherwise.pasid_table),
                    stage_two: stage_two.unwrap_or(otherwise.stage_two),
                    page_request_timeout: timeout.unwrap_or(otherwise.page_request_timeout),
                    ..otherwise
                };
                // Nobody is surprised by it: such a guest never learns the host's numbers.
                let usual = match config.numbers_host_table() {
                    true => Numbering::Private,
                    false => otherwise.numbering,
                };
                GuestConfig {
                    numbering: numbering.map_or(usual, |NumberingWord(said)| said),
                    ..config
                }
            });
        let configs: Vec<_> = configs.collect();
        check_numbers(names, &configs)?;
        Ok(configs)
    }
}

/// Checks that guests' numbers can be what they are to be.
fn check_numbers(names: &[String], configs: &[GuestConfig]) -> Result<(), Error> {
    let all = || names.iter().zip(configs);
    let private = all().find(|(_, config)| {
        let asks = config.commands != Commands::Off || config.pasid_table == PasidTable::Host;
        config.numbering == Numbering::Private && !asks
    });
    if let Some((guest, _)) = private {
        return Err(Error::PrivateWithoutCommands { guest: guest.clone() });
    }
    let same = all()
        .find(|(_, config)| config.numbers_host_table() && config.numbering == Numbering::Identity);
    match same {
        Some((guest, _)) if configs.len() > 1 => Err(Error::SameNumbers { guest: guest.clone() }),
        _ => Ok(()),
    }
}

/// Checks that a host with `capacity` PASIDs can keep what it promises to all.
///
/// # Errors
/// [`Error::Quotas`].
pub fn check_quotas(configs: &[GuestConfig], capacity: u32) -> Result<(), Error> {
    let sum = configs.iter().map(|config| u64::from(config.quota)).sum();
    if sum > u64::from(capacity) {
        return Err(Error::Quotas { guests: configs.len(), sum, capacity });
    }
    Ok(())
}

/// The value for each of `names`: its own, else that for all, if there is one.
fn spread<T: Copy>(
    option: &'static str,
    settings: &[Setting<T>],
    names: &[String],
) -> Result<Vec<Option<T>>, Error> {
    for (index, Setting { guest, .. }) in settings.iter().enumerate() {
        if let Some(name) = guest.as_ref().filter(|name| !names.contains(name)) {
            return Err(Error::NoGuest { option, name: name.clone(), known: names.to_vec() });
        }
        if settings.iter().take(index).any(|earlier| earlier.guest == *guest) {
            return Err(Error::Twice { option, guest: guest.clone() });
        }
    }
    let of = |guest: Option<&String>| {
        settings.iter().find(|setting| setting.guest.as_ref() == guest).map(|setting| setting.value)
    };
    let for_all = of(None);
    Ok(names.iter().map(|name| of(Some(name)).or(for_all)).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use iommu::DEFAULT_QUOTA;

    use super::*;

    fn settings<T: FromStr<Err: fmt::Debug>>(words: &[&str]) -> Vec<Setting<T>> {
        words.iter().map(|word| word.parse().unwrap()).collect()
    }

    fn shares(quota: &[&str], numbering: &[&str], commands: &[&str]) -> Shares {
        let (quota, numbering) = (settings(quota), settings(numbering));
        Shares { quota, numbering, commands: settings(commands), ..Shares::default() }
    }

    fn names() -> Vec<String> {
        ["guest0", "guest1", "guest2"].map(str::to_owned).into()
    }

    #[test]
    fn a_guests_own_setting_goes_before_that_for_all() {
        let shares = shares(
            &["guest1=7", "100"],
            &["private", "guest2=identity"],
            &["3.3", "guest0=3.0", "guest2=off"],
        );
        let config = |quota, numbering, commands| GuestConfig {
            quota,
            numbering,
            commands,
            ..GuestConfig::USUAL
        };
        let wanted = [
            config(100, Numbering::Private, Commands::Revision30),
            config(7, Numbering::Private, Commands::Revision33),
            config(100, Numbering::Identity, Commands::Off),
        ];
        assert_eq!(shares.of(&names()), Ok(wanted.into()));
    }

    #[test]
    fn nothing_said_is_the_default() {
        let configs = Shares::default().of(&names()).unwrap();
        assert_eq!(configs, [GuestConfig::default(); 3]);
        assert_eq!(configs[0].quota, DEFAULT_QUOTA);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let twice = |guest: Option<&str>| Error::Twice {
            option: "--quota",
            guest: guest.map(str::to_owned),
        };
        let of = |shares: Shares| shares.of(&names()).unwrap_err();
        assert_eq!(of(shares(&["1", "2"], &[], &[])), twice(None));
        assert_eq!(of(shares(&["guest1=1", "guest1=1"], &[], &[])), twice(Some("guest1")));
        let nobody = of(shares(&[], &[], &["guest3=3.0"]));
        assert_eq!(
            nobody.to_string(),
            "--vcmd guest3=…: there is no guest \"guest3\"; there are guest0 to guest2"
        );
        let private = of(shares(&[], &["private"], &["guest0=3.0"]));
        assert_eq!(private, Error::PrivateWithoutCommands { guest: "guest1".to_owned() });
    }

    #[test]
    fn a_table_of_the_hosts_has_numbers_of_its_own() {
        let host = |numbering: &[&str], commands: &[&str], table: &[&str]| Shares {
            pasid_table: settings(table),
            ..shares(&[], numbering, commands)
        };
        let numberings = |shares: Shares| {
            let configs = shares.of(&names()).unwrap();
            configs.iter().map(|config| config.numbering).collect::<Vec<_>>()
        };
        // Chosen where it is needed, and where nobody has said otherwise.
        let mixed = host(&[], &["guest0=3.3"], &["host", "guest2=guest"]);
        assert_eq!(
            numberings(mixed),
            [Numbering::Identity, Numbering::Private, Numbering::Identity]
        );
        let said = host(&["private", "guest2=identity"], &["guest2=3.3"], &["host"]);
        assert_eq!(numberings(said), [Numbering::Private, Numbering::Private, Numbering::Identity]);
        let identity = host(&["guest1=identity"], &[], &["host"]);
        let refused = identity.of(&names()).unwrap_err();
        assert_eq!(refused, Error::SameNumbers { guest: "guest1".to_owned() });
        // One guest alone has nobody to meet.
        let alone = host(&["identity"], &[], &["host"]).of(&["guest0".to_owned()]).unwrap();
        assert_eq!(alone[0].numbering, Numbering::Identity);
        let own = host(&["guest2=private"], &[], &["guest0=host"]).of(&names()).unwrap_err();
        assert_eq!(own, Error::PrivateWithoutCommands { guest: "guest2".to_owned() });
    }

    #[test]
    fn a_second_stage_is_for_those_who_want_it() {
        let stage_two = settings(&["shuffled", "guest1=none", "guest2=identity"]);
        let configs = Shares { stage_two, ..Shares::default() }.of(&names()).unwrap();
        let got: Vec<_> = configs.iter().map(|config| config.stage_two).collect();
        assert_eq!(got, [StageTwo::Shuffled, StageTwo::None, StageTwo::Identity]);
        assert!("guest0=shuffle".parse::<Setting<StageTwo>>().is_err());
        assert!("device".parse::<Setting<PasidTable>>().is_err());
    }

    #[test]
    fn a_guest_may_take_its_time_or_not() {
        let page_request_timeout = settings(&["250", "guest1=never"]);
        let configs = Shares { page_request_timeout, ..Shares::default() }.of(&names()).unwrap();
        let got: Vec<_> = configs.iter().map(|config| config.page_request_timeout).collect();
        let soon = PageTimeout::After(Duration::from_millis(250));
        assert_eq!(got, [soon, PageTimeout::Never, soon]);
        assert_eq!(PageTimeout::Never.policy().timeout, None);
        assert_eq!(soon.policy().timeout, Some(Duration::from_millis(250)));
        for wrong in ["0", "1s", "forever", ""] {
            assert!(wrong.parse::<PageTimeout>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn quotas_must_fit_the_space() {
        let quotas = |quota| shares(&[quota], &[], &[]).of(&names()).unwrap();
        assert_eq!(check_quotas(&quotas("349525"), 0xf_ffff), Ok(()));
        let refused = check_quotas(&quotas("349526"), 0xf_ffff).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the quotas of 3 guests add up to 1048578 PASIDs, and the host has 1048575 (--quota)"
        );
        assert!(check_quotas(&quotas("4294967295"), 0xf_ffff).is_err(), "no overflow");
    }

    #[test]
    fn words_that_mean_nothing_are_refused() {
        assert!("many".parse::<Setting<u32>>().is_err());
        assert!("guest0=".parse::<Setting<u32>>().is_err());
        assert_eq!("shared".parse::<Setting<NumberingWord>>(), Err(NoSuchNumbering));
        assert!("guest0=3.1".parse::<Setting<Commands>>().is_err());
    }
}
