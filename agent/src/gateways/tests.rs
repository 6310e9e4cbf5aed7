use std::collections::HashMap;

use super::*;

fn urls(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|index| format!("https://10.0.0.{index}:18000")).collect()
}

#[test]
fn nodes_are_spread_over_replicas_and_stay_where_they_were() {
    let three = Gateways::fixed(urls(0..3), Access::default());
    let four = Gateways::fixed(urls(0..4), Access::default());
    let mut count = HashMap::<String, usize>::new();
    let mut moved = 0;
    for node in (0..300).map(|index| format!("node-{index}")) {
        let chosen = three.choose(&node, 0).expect("there are some");
        assert_eq!(three.choose(&node, 3), Some(chosen.clone()), "after all of them the first comes again");
        let tried: std::collections::HashSet<_> = (0..3).filter_map(|attempt| three.choose(&node, attempt)).collect();
        assert_eq!(tried.len(), 3, "every replica is tried");
        moved += usize::from(four.choose(&node, 0) != Some(chosen.clone()));
        *count.entry(chosen).or_default() += 1;
    }
    assert!(count.len() == 3 && count.values().all(|nodes| (60..150).contains(nodes)), "{count:?}");
    assert!((30..120).contains(&moved), "{moved} of 300 have gone to the new one");
    assert_eq!(Gateways::fixed(vec![], Access::default()).choose("n", 0), None);
}

#[tokio::test]
async fn what_is_missing_or_wrong_in_a_file_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("empty"), " \n").expect("writes");
    std::fs::write(path("token"), "abc\n").expect("writes");
    let access = |ca: &str, token: &str| Access { ca: Some(path(ca)), token: Some(path(token)), name: None };
    let cases = [
        ("https://127.0.0.1:1", access("missing", "token"), "waiting for --gateway-ca"),
        ("https://127.0.0.1:1", access("token", "token"), "a certificate in PEM form"),
        ("http://127.0.0.1:1", access("missing", "missing"), "waiting for --gateway-token"),
        ("http://127.0.0.1:1", access("missing", "empty"), "does not hold a token"),
        ("http://127.0.0.1:1", access("missing", "token"), "cannot connect"),
    ];
    for (url, access, expected) in cases {
        let error = access.connect(url).await.map(drop).expect_err("cannot work");
        let text = line(&error).to_string();
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains("abc"), "{text}");
    }
}
