//! A backend as one configuration has it. What a scheduler chooses by lies side by side in the service's list.
use std::ops::Deref;
use std::sync::Arc;

use super::Backend;
use crate::policy::BackendSpec;

/// See the module.
#[derive(Clone, Debug)]
pub struct Member {
    /// Who it is, and how loaded: the same in all configurations.
    pub backend: Arc<Backend>,
    weight: u32,
    last_weight: u32,
}

impl Member {
    /// The backend as `spec` has it; `former` is what it was in the configuration before, if that had it.
    #[must_use]
    pub fn new(backend: Arc<Backend>, spec: &BackendSpec, former: Option<&Self>) -> Self {
        // `__ip_vs_update_dest` keeps the last weight that was not 0, for mh, unless the server is added anew.
        let last_weight = match spec.weight {
            0 => former.map_or(0, |former| former.last_weight),
            weight => weight,
        };
        Self {
            backend,
            weight: spec.weight,
            last_weight,
        }
    }

    /// The same member with another backend in its place: to see what would be.
    #[must_use]
    pub fn with(&self, backend: Arc<Backend>) -> Self {
        Self { backend, ..*self }
    }

    /// Its share of new flows; 0 drains it.
    #[must_use]
    #[inline]
    pub const fn weight(&self) -> u32 {
        self.weight
    }

    /// The last weight that was not 0 (`dest->last_weight`).
    #[must_use]
    pub const fn last_weight(&self) -> u32 {
        self.last_weight
    }
}

impl Deref for Member {
    type Target = Backend;

    #[inline]
    fn deref(&self) -> &Backend {
        &self.backend
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::ServiceIdentity;

    #[test]
    fn a_backend_that_comes_back_with_weight_0_has_no_place_in_the_table_of_mh_that_it_had() {
        let spec = |weight| BackendSpec {
            address: "10.2.0.11:80".parse().unwrap(),
            weight,
            upper_threshold: 0,
            lower_threshold: 0,
        };
        let service = Arc::new(ServiceIdentity::new(1, "web"));
        let backend = Arc::new(Backend::new(1, &spec(1), service, 1));
        let member = Member::new(Arc::clone(&backend), &spec(1), None);
        let drained = Member::new(Arc::clone(&backend), &spec(0), Some(&member));
        assert_eq!(drained.last_weight(), 1, "drained: nobody else's clients move");
        assert_eq!(Member::new(backend, &spec(0), None).last_weight(), 0);
    }
}
