//! What can be made to go wrong on purpose, from the command line and in the middle of a scenario: a server that obeys
//! every rule, and a world around it that does not.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;
use std::time::Duration;

/// One thing that goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Injection {
    /// One in so many answers to page requests is lost on its way to the device.
    DropResponse {
        /// Of how many answers one is lost; 1 is every answer.
        one_in: NonZeroU32,
    },
    /// Answers to page requests reach the device later.
    DelayResponse(Duration),
    /// The device hears each answer to a page request twice.
    AnswerTwice,
    /// The guest's page request queue behaves as if it were full.
    OverflowQueue {
        /// For how long from the first request that meets it; without it, until it is cleared.
        lasting: Option<Duration>,
    },
    /// The device answers invalidations of its TLB later.
    DelayInvalidation(Duration),
    /// The word that a table walk fetches as the N-th from now on is not there, once.
    FailWalk {
        /// Which one, from 1.
        word: NonZeroU64,
    },
}

/// What an injection changes; there is one of a kind at a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum InjectionKind {
    /// Answers to page requests.
    Responses,
    /// The page request queue.
    Queue,
    /// Answers to invalidations.
    Invalidations,
    /// Table walks.
    Walks,
}

impl Injection {
    /// How they are written, in the order of help texts.
    pub const FORMS: [&'static str; 6] = [
        "drop-response[=ONE_IN]",
        "delay-response=MS",
        "answer-twice",
        "overflow-queue[=MS]",
        "delay-invalidation=MS",
        "fail-walk=N",
    ];

    /// What it changes.
    pub const fn kind(self) -> InjectionKind {
        match self {
            Self::DropResponse { .. } | Self::DelayResponse(_) | Self::AnswerTwice => {
                InjectionKind::Responses
            }
            Self::OverflowQueue { .. } => InjectionKind::Queue,
            Self::DelayInvalidation(_) => InjectionKind::Invalidations,
            Self::FailWalk { .. } => InjectionKind::Walks,
        }
    }
}

impl fmt::Display for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DropResponse { one_in } => write!(f, "drop-response={one_in}"),
            Self::DelayResponse(late) => write!(f, "delay-response={}", late.as_millis()),
            Self::AnswerTwice => f.write_str("answer-twice"),
            Self::OverflowQueue { lasting: None } => f.write_str("overflow-queue"),
            Self::OverflowQueue { lasting: Some(lasting) } => {
                write!(f, "overflow-queue={}", lasting.as_millis())
            }
            Self::DelayInvalidation(late) => write!(f, "delay-invalidation={}", late.as_millis()),
            Self::FailWalk { word } => write!(f, "fail-walk={word}"),
        }
    }
}

/// Words that are no injection.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InjectionError {
    /// There is none of this name.
    #[error("there are {}", Injection::FORMS.join(", "))]
    Unknown,
    /// It needs a value, or has none, or not this one.
    #[error("it is written {form}, with a whole number from 1")]
    Value {
        /// How it is written.
        form: &'static str,
    },
}

impl FromStr for Injection {
    type Err = InjectionError;

    fn from_str(text: &str) -> Result<Self, InjectionError> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let named = |form: &&str| form.split(['=', '[']).next() == Some(name);
        let form = *Self::FORMS.iter().find(|form| named(form)).ok_or(InjectionError::Unknown)?;
        Self::with_value(name, value).ok_or(InjectionError::Value { form })
    }
}

impl Injection {
    /// The one of this name with this value; `None` if it takes no such value.
    fn with_value(name: &str, value: Option<&str>) -> Option<Self> {
        let millis = |text: &str| {
            let millis: NonZeroU32 = text.parse().ok()?;
            Some(Duration::from_millis(millis.get().into()))
        };
        Some(match (name, value) {
            ("drop-response", None) => Self::DropResponse { one_in: NonZeroU32::MIN },
            ("drop-response", Some(one_in)) => Self::DropResponse { one_in: one_in.parse().ok()? },
            ("delay-response", Some(late)) => Self::DelayResponse(millis(late)?),
            ("answer-twice", None) => Self::AnswerTwice,
            ("overflow-queue", None) => Self::OverflowQueue { lasting: None },
            ("overflow-queue", Some(lasting)) => {
                Self::OverflowQueue { lasting: Some(millis(lasting)?) }
            }
            ("delay-invalidation", Some(late)) => Self::DelayInvalidation(millis(late)?),
            ("fail-walk", Some(word)) => Self::FailWalk { word: word.parse().ok()? },
            _ => return None,
        })
    }
}

/// Two injections change the same thing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("--inject {first} and --inject {second} do not go together: both change the same answers")]
pub struct InjectionsCollide {
    /// The one.
    pub first: Injection,
    /// The other.
    pub second: Injection,
}

/// A guest's place has no way to let this go wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0} cannot be injected")]
pub struct CannotInject(pub Injection);

/// Checks that no two of them change the same thing.
///
/// # Errors
/// [`InjectionsCollide`], with the first two.
pub fn check_injections(injections: &[Injection]) -> Result<(), InjectionsCollide> {
    for (index, second) in injections.iter().enumerate() {
        let mut earlier = injections.iter().take(index);
        if let Some(first) = earlier.find(|first| first.kind() == second.kind()) {
            return Err(InjectionsCollide { first: *first, second: *second });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        let all = [
            ("drop-response=3", Injection::DropResponse { one_in: NonZeroU32::new(3).unwrap() }),
            ("delay-response=250", Injection::DelayResponse(Duration::from_millis(250))),
            ("answer-twice", Injection::AnswerTwice),
            ("overflow-queue", Injection::OverflowQueue { lasting: None }),
            (
                "overflow-queue=40",
                Injection::OverflowQueue { lasting: Some(Duration::from_millis(40)) },
            ),
            ("delay-invalidation=1500", Injection::DelayInvalidation(Duration::from_millis(1500))),
            ("fail-walk=7", Injection::FailWalk { word: NonZeroU64::new(7).unwrap() }),
        ];
        for (text, injection) in all {
            assert_eq!(text.parse(), Ok(injection));
            assert_eq!(injection.to_string(), text);
        }
        let every = Injection::DropResponse { one_in: NonZeroU32::MIN };
        assert_eq!("drop-response".parse(), Ok(every));
    }

    #[test]
    fn what_means_nothing_is_refused_with_what_there_is() {
        let unknown = "drop-respons".parse::<Injection>().unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "there are drop-response[=ONE_IN], delay-response=MS, answer-twice, \
             overflow-queue[=MS], delay-invalidation=MS, fail-walk=N"
        );
        let late = InjectionError::Value { form: "delay-response=MS" };
        for text in ["delay-response", "delay-response=", "delay-response=0", "delay-response=1s"] {
            assert_eq!(text.parse::<Injection>(), Err(late.clone()), "{text}");
        }
        for text in ["answer-twice=2", "fail-walk", "fail-walk=0", "overflow-queue=-1", "=1", ""] {
            assert!(text.parse::<Injection>().is_err(), "{text}");
        }
    }

    #[test]
    fn one_thing_goes_wrong_in_one_way() {
        let parse = |text: &str| text.parse::<Injection>().unwrap();
        let apart =
            ["answer-twice", "overflow-queue", "delay-invalidation=9", "fail-walk=1"].map(parse);
        assert_eq!(check_injections(&apart), Ok(()));
        let [first, second] = ["drop-response", "delay-response=5"].map(parse);
        let collide = check_injections(&[first, apart[3], second]);
        assert_eq!(collide, Err(InjectionsCollide { first, second }));
    }
}
