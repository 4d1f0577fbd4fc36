//! What one round of a push did not finish, and what a flush does about it.
//!
//! Depends on `flights` only, so that `tests/interleavings` can compile it with other primitives. Invariant: a flush is done
//! only after a round that left nothing: no failure, no change to be pushed again, no transfer under way.

use super::flights::Landings;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// To be done again at once: files written meanwhile, conflicts that got a new name.
    pub again: usize,
    pub reasons: Vec<String>,
    /// Changes had to wait for a transfer of an earlier round, which has ended now.
    pub held_back: bool,
    /// Tells when one of the transfers that are still under way ends.
    pub under_way: Option<Landings>,
}

/// What a flush does after a round.
#[derive(Debug)]
pub(super) enum Then {
    /// Give up, but for the transfers that are under way.
    Fail,
    /// Another round, not without end.
    Again,
    /// Another round; every such round ends a transfer.
    Round,
    /// Another round when a transfer has ended.
    Wait(Landings),
    /// Nothing.
    Done,
}

impl Left {
    /// What a flush does after a round that left this.
    pub fn then(&mut self) -> Then {
        if !self.reasons.is_empty() {
            return Then::Fail;
        }
        match self.under_way.take() {
            _ if self.again > 0 => Then::Again,
            _ if self.held_back => Then::Round,
            Some(landings) => Then::Wait(landings),
            None => Then::Done,
        }
    }
}
