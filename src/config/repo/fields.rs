//! One mapping of the configuration, taken apart field by field, so that what is left is what nobody knows.
//!
//! Depends on the environment. Invariant: a value is used only after its `${{ env.NAME }}` are replaced.

use std::time::Duration;

use serde_json::{Map, Value};

use super::RepoProblem;
use crate::config::Environment;

/// See the module.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    /// The file or the variable, for messages.
    origin: &'a str,
    /// Names of the mappings around it, each with a dot.
    above: String,
    map: Map<String, Value>,
    environment: &'a Environment,
}

impl<'a> Fields<'a> {
    pub fn of(origin: &'a str, above: &str, value: Value, environment: &'a Environment) -> Result<Self, RepoProblem> {
        let map = match value {
            Value::Object(map) => map,
            Value::Null => Map::new(),
            _ => {
                let field = if above.is_empty() { "the document" } else { above.trim_end_matches('.') };
                let (origin, field) = (origin.to_owned(), field.to_owned());
                return Err(RepoProblem::Field { origin, field, reason: "is no mapping of names to values".into() });
            }
        };
        Ok(Self { origin, above: above.to_owned(), map, environment })
    }

    /// An error about one field.
    pub fn problem(&self, field: &str, reason: impl Into<String>) -> RepoProblem {
        RepoProblem::Field {
            origin: self.origin.to_owned(),
            field: format!("{}{field}", self.above),
            reason: reason.into(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Takes a mapping inside this one; an empty one when it is absent.
    pub fn section(&mut self, field: &str) -> Result<Self, RepoProblem> {
        let value = self.map.shift_remove(field).unwrap_or(Value::Null);
        Self::of(self.origin, &format!("{}{field}.", self.above), value, self.environment)
    }

    /// Takes a value; its variables are replaced. Empty text and `null` count as absent.
    fn take(&mut self, field: &str) -> Result<Option<Value>, RepoProblem> {
        match self.map.shift_remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => {
                let text = self.expand(field, &text)?;
                Ok((!text.is_empty()).then_some(Value::String(text)))
            }
            Some(other) => Ok(Some(other)),
        }
    }

    fn expand(&self, field: &str, text: &str) -> Result<String, RepoProblem> {
        let (mut expanded, mut rest) = (String::new(), text);
        while let Some((before, expression)) = rest.split_once("${{") {
            let Some((inside, after)) = expression.split_once("}}") else {
                return Err(self.problem(field, format!("holds \"${{{{\" without \"}}}}\": {text:?}")));
            };
            let Some(name) = inside.trim().strip_prefix("env.").filter(|name| !name.is_empty()) else {
                let reason = format!("holds {:?}; only ${{{{ env.NAME }}}} is understood", inside.trim());
                return Err(self.problem(field, reason));
            };
            let Some(value) = self.environment.text(name) else {
                let reason = format!("needs the environment variable {name}, which is not set");
                return Err(self.problem(field, reason));
            };
            expanded += before;
            expanded += value;
            rest = after;
        }
        Ok(expanded + rest)
    }

    pub fn text(&mut self, field: &str) -> Result<Option<String>, RepoProblem> {
        match self.take(field)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            // YAML reads a bucket that is called 2026 as a number.
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(_) => Err(self.problem(field, "is no text")),
        }
    }

    pub fn flag(&mut self, field: &str) -> Result<Option<bool>, RepoProblem> {
        match self.take(field)? {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(Value::String(text)) if text == "true" || text == "false" => Ok(Some(text == "true")),
            Some(other) => Err(self.problem(field, format!("is {other} and neither true nor false"))),
        }
    }

    /// A whole number within a range.
    pub fn number(&mut self, field: &str, least: u64, most: u64) -> Result<Option<u64>, RepoProblem> {
        let Some(value) = self.take(field)? else { return Ok(None) };
        let number = match &value {
            Value::String(text) => text.trim().parse().ok(),
            other => other.as_u64(),
        };
        match number.filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.problem(field, format!("is {value} and no whole number between {least} and {most}"))),
        }
    }

    pub fn milliseconds(&mut self, field: &str, least: u64, most: u64) -> Result<Option<Duration>, RepoProblem> {
        Ok(self.number(field, least, most)?.map(Duration::from_millis))
    }

    /// A list of texts, or one text.
    pub fn list(&mut self, field: &str) -> Result<Vec<String>, RepoProblem> {
        let items = match self.take(field)? {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(one) => vec![one],
        };
        let text = |item: Value| match item {
            Value::String(text) => self.expand(field, &text),
            _ => Err(self.problem(field, "is no list of texts")),
        };
        items.into_iter().map(text).collect()
    }

    /// Takes fields that do not matter.
    pub fn ignore(&mut self, fields: &[&str]) {
        for field in fields {
            self.map.shift_remove(*field);
        }
    }

    /// Warnings about what was not taken.
    pub fn unknown(self) -> impl Iterator<Item = String> {
        let (origin, above) = (self.origin.to_owned(), self.above);
        self.map.into_iter().map(move |(field, _)| format!("{origin}: {above}{field} is not known and is ignored"))
    }
}
