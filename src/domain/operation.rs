//! What changed in a stage, together.

/// The kind of an operation. Stored as its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationKind {
    /// Every entry was new.
    Create,
    /// At least one entry replaced a version.
    Update,
    /// Names were deleted and nothing was written.
    Delete,
}

impl OperationKind {
    /// The stored word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}
