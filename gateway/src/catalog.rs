//! What people want to know of objects beside the resources they became: problems, and when they were created.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use crate::{
    problem::{ByObject, Problem},
    watch::object::ObjectKey,
};

/// What is known beside the resources. Cloning shares it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// Problems of single objects; objects without any are left out.
    pub problems: Arc<ByObject>,
    /// Problems of the source as a whole, such as manifest files that do not parse.
    pub source_problems: Arc<Vec<Problem>>,
    /// When Services and Nodes were created, as far as known.
    pub created: Arc<BTreeMap<ObjectKey, SystemTime>>,
}

impl Catalog {
    /// Logs what appeared and what is gone since `before`.
    pub fn log_changes(&self, before: &Catalog) {
        for problem in self.source_problems.iter().filter(|problem| !before.source_problems.contains(problem)) {
            tracing::warn!(reason = problem.reason, "{}", problem.message);
        }
        for problem in before.source_problems.iter().filter(|problem| !self.source_problems.contains(problem)) {
            tracing::info!(reason = problem.reason, "solved: {}", problem.message);
        }
        if Arc::ptr_eq(&self.problems, &before.problems) {
            return;
        }
        let none = Vec::new();
        for (object, problems) in self.problems.iter() {
            let known = before.problems.get(object).unwrap_or(&none);
            for problem in problems.iter().filter(|problem| !known.contains(problem)) {
                tracing::warn!(%object, reason = problem.reason, "{}", problem.message);
            }
        }
        for (object, problems) in before.problems.iter() {
            let known = self.problems.get(object).unwrap_or(&none);
            for problem in problems.iter().filter(|problem| !known.contains(problem)) {
                tracing::info!(%object, reason = problem.reason, "solved: {}", problem.message);
            }
        }
    }
}
