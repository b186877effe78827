//! The kernel's own account of a process's pages, from `/proc/self/smaps`.

use std::io;
use std::ops::Range;

use crate::dma::Span;

/// The account of one mapping, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// Addresses of the mapping.
    pub(crate) range: Range<u64>,
    /// Pages present.
    pub(crate) resident: u64,
    /// Pages that differ from what they were filled with: shared and private ones.
    pub(crate) dirty: u64,
    /// Pages accessed since `clear_refs`.
    pub(crate) referenced: u64,
    /// Anonymous memory backed by huge pages.
    pub(crate) huge: u64,
}

/// The accounts of all mappings of this process.
pub(crate) fn all() -> io::Result<Vec<Account>> {
    Ok(parse(&std::fs::read_to_string("/proc/self/smaps")?))
}

/// The accounts of the mappings that overlap a span.
pub(crate) fn accounts_of(span: Span<'_>) -> io::Result<Vec<Account>> {
    let wanted = span.address()..span.address() + span.len() as u64;
    let mut accounts = all()?;
    accounts.retain(|account| account.range.start < wanted.end && wanted.start < account.range.end);
    Ok(accounts)
}

/// Resets the referenced state of every page of this process.
pub(crate) fn clear_referenced() -> io::Result<()> {
    std::fs::write("/proc/self/clear_refs", "1")
}

fn parse(text: &str) -> Vec<Account> {
    let mut accounts: Vec<Account> = Vec::new();
    for line in text.lines() {
        if let Some(range) = header(line) {
            accounts.push(Account { range, ..Account::default() });
        } else if let (Some(account), Some((name, bytes))) = (accounts.last_mut(), amount(line)) {
            match name {
                "Rss" => account.resident = bytes,
                "Shared_Dirty" | "Private_Dirty" => account.dirty += bytes,
                "Referenced" => account.referenced = bytes,
                "AnonHugePages" => account.huge = bytes,
                _ => {}
            }
        }
    }
    accounts
}

fn header(line: &str) -> Option<Range<u64>> {
    let (range, _) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

fn amount(line: &str) -> Option<(&str, u64)> {
    let (name, rest) = line.split_once(':')?;
    let kibibytes: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((name, kibibytes.saturating_mul(1024)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::{Mapping, Place, PAGE};

    const TEXT: &str = "\
7f0000000000-7f0000004000 rw-s 00000000 00:01 2049   /memfd:pages (deleted)
Size:                 16 kB
Rss:                  12 kB
Shared_Clean:          0 kB
Shared_Dirty:          4 kB
Private_Clean:         4 kB
Private_Dirty:         4 kB
Referenced:            8 kB
AnonHugePages:         0 kB
THPeligible:    0
VmFlags: rd wr sh mr mw me ms sd
7f0000200000-7f0000400000 rw-p 00000000 00:00 0
Rss:                2048 kB
AnonHugePages:      2048 kB
";

    #[test]
    fn each_mapping_has_its_own_account() {
        let accounts = parse(TEXT);
        assert_eq!(accounts.len(), 2);
        assert_eq!(
            accounts[0],
            Account {
                range: 0x7f00_0000_0000..0x7f00_0000_4000,
                resident: 12 << 10,
                dirty: 8 << 10,
                referenced: 8 << 10,
                huge: 0,
            }
        );
        assert_eq!(accounts[1].huge, 2 << 20);
        assert_eq!(parse("nonsense\n\n: kB\nRss: 4 kB\n"), []);
    }

    #[test]
    fn this_process_finds_its_own_mapping() {
        let mapping = Mapping::anonymous(Place::Anywhere, 4 * PAGE).unwrap();
        mapping.span().part(0, 1).fill(1);
        let accounts = accounts_of(mapping.span()).unwrap();
        let dirty: u64 = accounts.iter().map(|account| account.dirty).sum();
        assert!(dirty >= PAGE as u64, "{accounts:?}");
    }
}
