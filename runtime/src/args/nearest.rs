//! The known name that a mistyped one was probably meant to be.

/// The nearest of `known` to `name`, if one is near enough to be worth suggesting: at most one edit per three
/// characters, and one for short names. An edit inserts, deletes or replaces a character or swaps two neighbours;
/// case does not count. Of equally near names the first wins.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let name = fold(name);
    let near_enough = (name.len() / 3).max(1);
    known
        .iter()
        .map(|candidate| (distance(&name, &fold(candidate)), *candidate))
        .filter(|(edits, _)| *edits <= near_enough)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

fn fold(name: &str) -> Vec<char> {
    name.chars().flat_map(char::to_lowercase).collect()
}

/// Edits between two names (optimal string alignment), by rows of the usual table.
fn distance(from: &[char], to: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for i in 1..=from.len() {
        let mut row = vec![i; to.len() + 1];
        for j in 1..=to.len() {
            let replace = above[j - 1] + usize::from(from[i - 1] != to[j - 1]);
            row[j] = replace.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = above;
        above = row;
    }
    above[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        let cases = [
            ("", "", 0),
            ("", "abc", 3),
            ("json", "jsn", 1),
            ("json", "josn", 1),
            ("text", "Text", 1),
            ("kitten", "sitting", 3),
        ];
        for (from, to, edits) in cases {
            let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
            assert_eq!(distance(&from, &to), edits, "{from:?} {to:?}");
            assert_eq!(distance(&to, &from), edits, "{to:?} {from:?}");
        }
    }

    #[test]
    fn suggests_only_what_is_near() {
        let known = ["least-request", "random", "round-robin", "client-hash"];
        let cases = [
            ("random", Some("random")),
            ("radnom", Some("random")),
            ("Round-Robin", Some("round-robin")),
            ("roundrobin", Some("round-robin")),
            ("least-requests", Some("least-request")),
            ("leastrequest", Some("least-request")),
            ("maglev", None),
            ("", None),
        ];
        for (name, expected) in cases {
            assert_eq!(nearest(name, &known), expected, "{name}");
        }
    }
}
