//! Scenarios that end in a verdict, so that builds with a deliberate defect can prove that the
//! verdict turns.
