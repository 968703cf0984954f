//! What would happen to a fragment: `Processor::forward_fragment`, without leaving a trace.
use super::Way;
use lbd_core::engine::{Course, begun, is_followed, is_tiny, may_be_ours};
use lbd_core::fragments::Key;
use lbd_core::packet::Headers;
use lbd_core::packet::fragment::Fragment;
use lbd_core::verdict::{Drop, Verdict};

impl Way<'_> {
    pub(super) fn fragment(&mut self, headers: &Headers, fragment: &Fragment) -> Verdict {
        let concerns_flows = may_be_ours(self.ruleset, headers);
        match (begun(headers, fragment, self.packet), fragment.is_first()) {
            _ if !is_followed(headers, fragment) => self.without_ports(headers),
            (Some(segment), _) => self.with_ports(headers, &segment),
            (None, _) if is_tiny(headers, fragment) && concerns_flows => Verdict::Drop(Drop::FragmentTiny),
            (None, true) => self.without_ports(headers),
            (None, false) => match self.engine.course(&Key::new(headers, fragment)) {
                Some(course) => self.later(course),
                None if concerns_flows => Verdict::Hold,
                None => self.without_ports(headers),
            },
        }
    }

    /// Behind a first fragment that was decided about.
    fn later(&mut self, course: Result<Course, Drop>) -> Verdict {
        let way = match course {
            Ok(Course::Forward(way)) => way,
            Ok(Course::Pass(reason)) => return Verdict::Pass(reason),
            Ok(Course::Drop(reason)) | Err(reason) => return Verdict::Drop(reason),
        };
        let Some((connection, direction)) = self.engine.conntrack().get(&way.key.into(), self.now) else {
            return Verdict::Forward;
        };
        self.found(&connection, direction, connection.state, "follows");
        self.leave(&connection.leaving(direction), false)
    }
}
