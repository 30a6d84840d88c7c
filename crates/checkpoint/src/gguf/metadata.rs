use std::collections::{BTreeMap, btree_map::Entry};

use super::{GgufError, reader::Reader};
use crate::CheckpointError;

/// The most keys of a file; real ones have less than a hundred.
const KEYS_CAP: u64 = 1 << 16;
/// The most items of an array; the longest real ones are merges, less than a million.
const ITEMS_CAP: u64 = 1 << 22;

/// A metadata value. Strings and arrays stay in the file.
#[derive(Clone)]
pub(super) enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Str(&'a str),
    Array(Array<'a>),
}

/// GGUF's types of values, but for arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scalar {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Str,
    U64,
    I64,
    F64,
}

/// GGUF's number for arrays.
const ARRAY: u32 = 9;

impl Scalar {
    fn from_id(id: u32) -> Option<Self> {
        use Scalar::*;
        Some(match id {
            0 => U8,
            1 => I8,
            2 => U16,
            3 => I16,
            4 => U32,
            5 => I32,
            6 => F32,
            7 => Bool,
            8 => Str,
            10 => U64,
            11 => I64,
            12 => F64,
            _ => return None,
        })
    }

    /// The fewest bytes that a value takes.
    fn min_bytes(self) -> usize {
        use Scalar::*;
        match self {
            U8 | I8 | Bool => 1,
            U16 | I16 => 2,
            U32 | I32 | F32 => 4,
            // A string has its length before it.
            Str | U64 | I64 | F64 => 8,
        }
    }

    fn read<'a>(self, reader: &mut Reader<'a>) -> Result<Value<'a>, GgufError> {
        use Scalar::*;
        const WHAT: &str = "a metadata value";
        let at = reader.at();
        Ok(match self {
            U8 => Value::Unsigned(u8::from_le_bytes(reader.array(WHAT)?).into()),
            U16 => Value::Unsigned(u16::from_le_bytes(reader.array(WHAT)?).into()),
            U32 => Value::Unsigned(u32::from_le_bytes(reader.array(WHAT)?).into()),
            U64 => Value::Unsigned(u64::from_le_bytes(reader.array(WHAT)?)),
            I8 => Value::Signed(i8::from_le_bytes(reader.array(WHAT)?).into()),
            I16 => Value::Signed(i16::from_le_bytes(reader.array(WHAT)?).into()),
            I32 => Value::Signed(i32::from_le_bytes(reader.array(WHAT)?).into()),
            I64 => Value::Signed(i64::from_le_bytes(reader.array(WHAT)?)),
            F32 => Value::Float(f32::from_le_bytes(reader.array(WHAT)?).into()),
            F64 => Value::Float(f64::from_le_bytes(reader.array(WHAT)?)),
            Str => Value::Str(reader.string()?),
            Bool => match reader.array(WHAT)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [value] => return Err(GgufError::Bool { at, value }),
            },
        })
    }
}

/// An array of a file. Its items were checked when it was found, and are decoded again on each use.
#[derive(Clone)]
pub(super) struct Array<'a> {
    scalar: Scalar,
    len: usize,
    items: Reader<'a>,
}

impl<'a> Array<'a> {
    fn read(key: &str, reader: &mut Reader<'a>) -> Result<Self, GgufError> {
        let id = reader.u32("the type of an array")?;
        if id == ARRAY {
            return Err(GgufError::Nested { key: key.to_owned() });
        }
        let scalar = Scalar::from_id(id).ok_or(GgufError::ValueType { key: key.to_owned(), id })?;
        let len = reader.count("items of an array", ITEMS_CAP, scalar.min_bytes())?;
        let items = reader.clone();
        for _ in 0..len {
            scalar.read(reader)?;
        }
        Ok(Self { scalar, len, items })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (scalar, mut items) = (self.scalar, self.items.clone());
        (0..self.len).map_while(move |_| scalar.read(&mut items).ok())
    }
}

/// The key-value part of a GGUF file.
pub(super) struct Metadata<'a>(BTreeMap<&'a str, Value<'a>>);

impl<'a> Metadata<'a> {
    pub(super) fn read(reader: &mut Reader<'a>, count: u64) -> Result<Self, GgufError> {
        if count > KEYS_CAP {
            return Err(GgufError::TooMany { what: "metadata keys", count, cap: KEYS_CAP });
        }
        let mut values = BTreeMap::new();
        for _ in 0..count {
            let key = reader.string()?;
            let value = match reader.u32("the type of a value")? {
                ARRAY => Value::Array(Array::read(key, reader)?),
                id => Scalar::from_id(id)
                    .ok_or(GgufError::ValueType { key: key.to_owned(), id })?
                    .read(reader)?,
            };
            match values.entry(key) {
                Entry::Vacant(entry) => entry.insert(value),
                Entry::Occupied(_) => return Err(GgufError::DuplicateKey(key.to_owned())),
            };
        }
        Ok(Self(values))
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.0.get(key)
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, CheckpointError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| field(key, format!("{expected} is expected here")))
    }

    pub(super) fn str(&self, key: &str) -> Result<Option<&'a str>, CheckpointError> {
        self.typed(key, "a string", |value| if let Value::Str(text) = value { Some(*text) } else { None })
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, CheckpointError> {
        self.typed(key, "a boolean", |value| if let Value::Bool(flag) = value { Some(*flag) } else { None })
    }

    pub(super) fn uint(&self, key: &str) -> Result<Option<usize>, CheckpointError> {
        self.typed(key, "a number that is not negative", |value| match *value {
            Value::Unsigned(number) => usize::try_from(number).ok(),
            Value::Signed(number) => usize::try_from(number).ok(),
            _ => None,
        })
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f32>, CheckpointError> {
        self.typed(key, "a number", |value| if let Value::Float(x) = value { Some(*x as f32) } else { None })
    }

    pub(super) fn strings(
        &self,
        key: &str,
    ) -> Result<Option<impl ExactSizeIterator<Item = &'a str> + use<'a>>, CheckpointError> {
        let array = self.array(key, Scalar::Str, "an array of strings")?;
        Ok(array.map(|array| {
            let mut items = array.items.clone();
            (0..array.len()).map(move |_| items.string().unwrap_or_default())
        }))
    }

    /// An array of 32-bit floats.
    pub(super) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, CheckpointError> {
        let array = self.array(key, Scalar::F32, "an array of 32-bit floats")?;
        let float = |value| if let Value::Float(x) = value { Some(x as f32) } else { None };
        Ok(array.map(|array| array.iter().filter_map(float).collect()))
    }

    /// An array of 32-bit integers.
    pub(super) fn ints(&self, key: &str) -> Result<Option<Vec<i64>>, CheckpointError> {
        let array = self.array(key, Scalar::I32, "an array of 32-bit integers")?;
        let int = |value| if let Value::Signed(number) = value { Some(number) } else { None };
        Ok(array.map(|array| array.iter().filter_map(int).collect()))
    }

    fn array(&self, key: &str, scalar: Scalar, expected: &str) -> Result<Option<Array<'a>>, CheckpointError> {
        self.typed(key, expected, |value| match value {
            Value::Array(array) if array.scalar == scalar => Some(array.clone()),
            _ => None,
        })
    }
}

/// An error about a key.
pub(super) fn field(key: &str, why: impl Into<String>) -> CheckpointError {
    CheckpointError::Field { field: key.to_owned(), why: why.into() }
}

/// The value of a key that must be there.
pub(super) fn required<T>(key: &str, value: Option<T>) -> Result<T, CheckpointError> {
    value.ok_or_else(|| field(key, "it is missing; convert the model again"))
}
