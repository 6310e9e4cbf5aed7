//! Every case is a test of its own, so that a run names those that fail: `cargo test -p tests --test cases [FILTER]`.
//! `PORTICO_CASES=DIR` takes the cases of another directory.

use libtest_mimic::{Arguments, Trial};
use tests::cases;

fn main() {
    let arguments = Arguments::from_args();
    let directory = cases::directory();
    let trials = match cases::load(&directory) {
        Ok(tests) => tests
            .into_iter()
            .map(|(suite, test)| Trial::test(format!("{suite}::{}", test.name), || (test.run)().map_err(Into::into)))
            .collect(),
        Err(reason) => vec![Trial::test("the cases can be read", || Err(reason.into()))],
    };
    libtest_mimic::run(&arguments, trials).exit();
}
