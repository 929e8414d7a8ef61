//! What changes between two pods, as JSON patch operations that name no more than what changes.
//!
//! Lists of objects are paired from both ends by their keys, so that an init container put first, or an entry put last, is
//! one `add`. Whatever the two documents are, the operations turn the old one into the new one.

use json_patch::jsonptr::{PointerBuf, Token};
use json_patch::{AddOperation, PatchOperation, RemoveOperation, ReplaceOperation};
use serde_json::{Map, Value};

/// The operations that turn `old` into `new` (RFC 6902).
pub(super) fn between(old: &Value, new: &Value) -> Vec<PatchOperation> {
    let mut operations = Vec::new();
    compare(&mut Path(Vec::new()), old, new, &mut operations);
    operations
}

/// Where in the document the comparison stands.
struct Path(Vec<Token<'static>>);

impl Path {
    fn pointer(&self) -> PointerBuf {
        PointerBuf::from_tokens(self.0.iter().cloned())
    }

    fn at(&mut self, token: Token<'static>, act: impl FnOnce(&mut Self)) {
        self.0.push(token);
        act(self);
        self.0.pop();
    }
}

fn add(path: &Path, value: &Value) -> PatchOperation {
    PatchOperation::Add(AddOperation {
        path: path.pointer(),
        value: value.clone(),
    })
}

fn remove(path: &Path) -> PatchOperation {
    PatchOperation::Remove(RemoveOperation {
        path: path.pointer(),
    })
}

fn compare(path: &mut Path, old: &Value, new: &Value, operations: &mut Vec<PatchOperation>) {
    match (old, new) {
        _ if old == new => {}
        (Value::Object(old), Value::Object(new)) => compare_objects(path, old, new, operations),
        (Value::Array(old), Value::Array(new))
            if old.iter().chain(new).all(Value::is_object) && !old.is_empty() =>
        {
            compare_lists(path, old, new, operations);
        }
        // `replace` of a null is refused by some patchers; `add` puts a value in any case.
        (Value::Null, _) => operations.push(add(path, new)),
        _ => operations.push(PatchOperation::Replace(ReplaceOperation {
            path: path.pointer(),
            value: new.clone(),
        })),
    }
}

fn compare_objects(
    path: &mut Path,
    old: &Map<String, Value>,
    new: &Map<String, Value>,
    operations: &mut Vec<PatchOperation>,
) {
    for (field, before) in old {
        path.at(Token::new(field).into_owned(), |path| {
            match new.get(field) {
                Some(after) => compare(path, before, after, operations),
                None => operations.push(remove(path)),
            }
        });
    }
    for (field, after) in new {
        if !old.contains_key(field) {
            path.at(Token::new(field).into_owned(), |path| {
                operations.push(add(path, after));
            });
        }
    }
}

/// What makes two items of lists the same thing in another state.
fn key(item: &Value) -> [Option<&Value>; 2] {
    [item.get("name"), item.get("mountPath")]
}

fn compare_lists(
    path: &mut Path,
    old: &[Value],
    new: &[Value],
    operations: &mut Vec<PatchOperation>,
) {
    let front = old
        .iter()
        .zip(new)
        .take_while(|(before, after)| key(before) == key(after))
        .count();
    let (old_front, old_rest) = old.split_at(front);
    let (new_front, new_rest) = new.split_at(front);
    let back = old_rest
        .iter()
        .rev()
        .zip(new_rest.iter().rev())
        .take_while(|(before, after)| key(before) == key(after))
        .count();
    let (old_middle, old_back) = old_rest.split_at(old_rest.len() - back);
    let (new_middle, new_back) = new_rest.split_at(new_rest.len() - back);

    for (index, (before, after)) in old_front.iter().zip(new_front).enumerate() {
        path.at(index.into(), |path| {
            compare(path, before, after, operations);
        });
    }
    // The highest place first, so that each place still names what it did.
    for index in (front..front + old_middle.len()).rev() {
        path.at(index.into(), |path| operations.push(remove(path)));
    }
    for (index, item) in (front..).zip(new_middle) {
        path.at(index.into(), |path| operations.push(add(path, item)));
    }
    for (index, (before, after)) in (front + new_middle.len()..).zip(old_back.iter().zip(new_back))
    {
        path.at(index.into(), |path| {
            compare(path, before, after, operations);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn applied(old: &Value, operations: &[PatchOperation]) -> Value {
        let mut document = old.clone();
        json_patch::patch(&mut document, operations).expect("the patch applies");
        document
    }

    fn paths(operations: &[PatchOperation]) -> Vec<String> {
        let word = |operation: &PatchOperation| match operation {
            PatchOperation::Add(_) => "add",
            PatchOperation::Remove(_) => "remove",
            PatchOperation::Replace(_) => "replace",
            _ => "other",
        };
        operations
            .iter()
            .map(|operation| format!("{} {}", word(operation), operation.path()))
            .collect()
    }

    #[test]
    fn an_item_put_first_and_one_changed_behind_it_are_two_operations() {
        let old = json!({"initContainers": [{"name": "a", "command": ["x"]}]});
        let new =
            json!({"initContainers": [{"name": "agent"}, {"name": "a", "command": ["y", "x"]}]});
        let operations = between(&old, &new);
        assert_eq!(
            paths(&operations),
            ["add /initContainers/0", "replace /initContainers/1/command"]
        );
        assert_eq!(applied(&old, &operations), new);
    }

    #[test]
    fn an_entry_put_last_is_one_operation() {
        let old = json!({"env": [{"name": "A", "value": "1"}, {"name": "B"}]});
        let new = json!({"env": [{"name": "A", "value": "1"}, {"name": "B"}, {"name": "C"}]});
        assert_eq!(paths(&between(&old, &new)), ["add /env/2"]);
    }

    #[test]
    fn keys_with_slashes_and_tildes_are_escaped() {
        let old = json!({"annotations": {"a/b": "1", "c~d": "2"}});
        let new = json!({"annotations": {"a/b": "3", "e/f": "4"}});
        let operations = between(&old, &new);
        assert_eq!(
            paths(&operations),
            [
                "replace /annotations/a~1b",
                "remove /annotations/c~0d",
                "add /annotations/e~1f"
            ]
        );
        assert_eq!(applied(&old, &operations), new);
    }

    #[test]
    fn equal_documents_have_no_operations() {
        let document = json!({"spec": {"containers": [{"name": "a"}]}});
        assert!(between(&document, &document).is_empty());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-c/~]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                prop::collection::btree_map("(name|mountPath|a|b/c)", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_operations_turn_any_document_into_any_other(old in any_json(), new in any_json()) {
            // A document is never replaced by null as a whole, which `json_patch` treats as its own case.
            let (old, new) = (json!({"root": old}), json!({"root": new}));
            prop_assert_eq!(applied(&old, &between(&old, &new)), new);
        }
    }
}
