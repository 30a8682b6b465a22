//! Named tensors, and the safetensors files they come from and go to.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use gatefold::ElementType;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, View};

use crate::error::{Error, Result};

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// Values in row-major order, the last axis contiguous.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Data,
    /// Of floats: how the file stored them, which the values are exact in.
    pub element: ElementType,
}

/// What the operations tell apart. Halves are widened when they are read.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
    Bool(Vec<bool>),
}

impl Tensor {
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Self {
        Self {
            shape: shape.to_vec(),
            data: Data::F32(data),
            element: ElementType::F32,
        }
    }

    pub fn f64(shape: &[usize], data: Vec<f64>) -> Self {
        Self {
            shape: shape.to_vec(),
            data: Data::F64(data),
            element: ElementType::F32,
        }
    }

    pub fn i64(shape: &[usize], data: Vec<i64>) -> Self {
        Self {
            shape: shape.to_vec(),
            data: Data::I64(data),
            element: ElementType::F32,
        }
    }

    pub fn bool(shape: &[usize], data: Vec<bool>) -> Self {
        Self {
            shape: shape.to_vec(),
            data: Data::Bool(data),
            element: ElementType::F32,
        }
    }

    /// The axes in another order: axis `i` of the result is axis `order[i]` of this.
    pub fn permuted(&self, order: &[usize]) -> Self {
        fn gather<T: Copy>(data: &[T], at: &[usize]) -> Vec<T> {
            at.iter().map(|&at| data[at]).collect()
        }
        let shape: Vec<usize> = order.iter().map(|&axis| self.shape[axis]).collect();
        let stride = |axis: usize| self.shape[axis + 1..].iter().product::<usize>();
        let mut at = vec![0];
        for (&axis, &len) in order.iter().zip(&shape) {
            let stride = stride(axis);
            let steps = |&start: &usize| (0..len).map(move |i| start + i * stride);
            at = at.iter().flat_map(steps).collect();
        }
        let data = match &self.data {
            Data::F32(data) => Data::F32(gather(data, &at)),
            Data::F64(data) => Data::F64(gather(data, &at)),
            Data::I64(data) => Data::I64(gather(data, &at)),
            Data::Bool(data) => Data::Bool(gather(data, &at)),
        };
        Self {
            shape,
            data,
            element: self.element,
        }
    }

    /// The values rounded to f32; none if they are no floats.
    pub fn into_f32(self) -> Vec<f32> {
        match self.data {
            Data::F32(data) => data,
            Data::F64(data) => data.iter().map(|&value| value as f32).collect(),
            Data::I64(_) | Data::Bool(_) => Vec::new(),
        }
    }

    fn kind(&self) -> &'static str {
        match self.data {
            Data::F32(_) => "F32",
            Data::F64(_) => "F64",
            Data::I64(_) => "I64",
            Data::Bool(_) => "BOOL",
        }
    }
}

/// The whole numbers of the tensor `name`, which must be there.
pub fn integers<'a>(tensors: &'a Tensors, name: &str) -> Result<&'a [i64]> {
    let tensor = get(tensors, name)?;
    match &tensor.data {
        Data::I64(data) => Ok(data),
        _ => {
            let kind = tensor.kind();
            Err(Error::usage(format_args!(
                "{name}: type {kind}, expected I32 or I64"
            )))
        }
    }
}

/// The values of the tensor `name`, which must be there.
pub fn floats<'a>(tensors: &'a Tensors, name: &str) -> Result<&'a [f32]> {
    let tensor = get(tensors, name)?;
    match &tensor.data {
        Data::F32(data) => Ok(data),
        _ => {
            let kind = tensor.kind();
            Err(Error::usage(format_args!(
                "{name}: type {kind}, expected F32, F16 or BF16"
            )))
        }
    }
}

/// "name: shape [..], expected .."
pub fn mismatch(tensors: &Tensors, name: &str, wanted: &str) -> Error {
    let shape = tensors.get(name).map(|tensor| tensor.shape.as_slice());
    let shape = shape.unwrap_or_default();
    Error::usage(format_args!("{name}: shape {shape:?}, expected {wanted}"))
}

pub fn get<'a>(tensors: &'a Tensors, name: &str) -> Result<&'a Tensor> {
    tensors
        .get(name)
        .ok_or_else(|| Error::usage(format_args!("{name}: is needed and missing")))
}

pub fn read(path: &Path) -> Result<Tensors> {
    let file = path.display();
    let bytes =
        std::fs::read(path).map_err(|error| Error::usage(format_args!("{file}: {error}")))?;
    let parsed = SafeTensors::deserialize(&bytes)
        .map_err(|error| Error::usage(format_args!("{file}: no safetensors file: {error}")))?;
    parsed
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let tensor = decode(&name, &view)?;
            Ok((name, tensor))
        })
        .collect()
}

fn decode(name: &str, view: &TensorView<'_>) -> Result<Tensor> {
    let bytes = view.data();
    let element = match view.dtype() {
        Dtype::F16 => ElementType::F16,
        Dtype::BF16 => ElementType::Bf16,
        _ => ElementType::F32,
    };
    let data = match view.dtype() {
        Dtype::F32 => Data::F32(each(bytes, f32::from_le_bytes)),
        Dtype::F16 => Data::F32(each(bytes, |b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => Data::F32(each(bytes, |b| bf16::from_le_bytes(b).to_f32())),
        Dtype::F64 => Data::F64(each(bytes, f64::from_le_bytes)),
        Dtype::I32 => Data::I64(each(bytes, |b| i32::from_le_bytes(b).into())),
        Dtype::I64 => Data::I64(each(bytes, i64::from_le_bytes)),
        Dtype::BOOL | Dtype::U8 => Data::Bool(bytes.iter().map(|&byte| byte != 0).collect()),
        other => {
            return Err(Error::usage(format_args!(
                "{name}: type {other}, expected F32, F16, BF16, I32, I64, BOOL or U8"
            )));
        }
    };
    Ok(Tensor {
        shape: view.shape().to_vec(),
        data,
        element,
    })
}

fn each<const N: usize, T>(bytes: &[u8], from: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (elements, _) = bytes.as_chunks::<N>();
    elements.iter().map(|&element| from(element)).collect()
}

impl View for &Tensor {
    fn dtype(&self) -> Dtype {
        match self.data {
            Data::F32(_) => match self.element {
                ElementType::F16 => Dtype::F16,
                ElementType::Bf16 => Dtype::BF16,
                ElementType::F32 => Dtype::F32,
            },
            Data::F64(_) => Dtype::F64,
            Data::I64(_) => Dtype::I64,
            Data::Bool(_) => Dtype::BOOL,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match &self.data {
            Data::F32(data) => match self.element {
                ElementType::F16 => data
                    .iter()
                    .flat_map(|&x| f16::from_f32(x).to_le_bytes())
                    .collect(),
                ElementType::Bf16 => data
                    .iter()
                    .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
                    .collect(),
                ElementType::F32 => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            },
            Data::F64(data) => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Data::I64(data) => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Data::Bool(data) => data.iter().map(|&x| u8::from(x)).collect(),
        }
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype().bitsize() / 8
    }
}

/// A file that is written beside its destination and takes its place when it is complete, so that a
/// failure leaves nothing half-written and an older file as it was.
#[derive(Debug)]
pub struct Destination<'a> {
    path: &'a Path,
    file: tempfile::NamedTempFile,
}

impl<'a> Destination<'a> {
    /// Finds out at once whether `path` can be written.
    pub fn create(path: &'a Path) -> Result<Self> {
        let wrong = |problem: &dyn std::fmt::Display| {
            Error::usage(format_args!("{}: {problem}", path.display()))
        };
        if path.is_dir() {
            return Err(wrong(&"is a folder"));
        }
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        if !folder.is_dir() {
            return Err(wrong(&"there is no such folder to write to"));
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".gatefold-");
        // a temporary file is private by default; this one becomes the user's result
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        // only its kind: the rest names the temporary file, which says nothing to anybody
        let file = builder
            .tempfile_in(folder)
            .map_err(|error| wrong(&error.kind()))?;
        Ok(Self { path, file })
    }

    pub fn write(mut self, tensors: &Tensors) -> Result<()> {
        let path = self.path.display();
        let failed = |error: &dyn std::fmt::Display| Error::failed(format_args!("{path}: {error}"));
        let bytes = safetensors::serialize(tensors, None).map_err(|error| failed(&error))?;
        self.file
            .write_all(&bytes)
            .map_err(|error| failed(&error))?;
        self.file
            .persist(self.path)
            .map_err(|error| failed(&error.error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(dtype: Dtype, bytes: &[u8]) -> Tensor {
        let len = bytes.len() * 8 / dtype.bitsize();
        decode("x", &TensorView::new(dtype, vec![len], bytes).unwrap()).unwrap()
    }

    #[test]
    fn halves_are_written_as_they_are_stored() {
        for (element, kind) in [
            (ElementType::F16, Dtype::F16),
            (ElementType::Bf16, Dtype::BF16),
        ] {
            let mut tensor = Tensor::f32(&[2], vec![1.5, -0.25]);
            tensor.element = element;
            let tensors = Tensors::from([("x".to_owned(), tensor.clone())]);
            let bytes = safetensors::serialize(&tensors, None).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(file.tensor("x").unwrap().dtype(), kind);
            assert_eq!(decode("x", &file.tensor("x").unwrap()).unwrap(), tensor);
        }
    }

    #[test]
    fn element_types_are_widened() {
        assert_eq!(view(Dtype::F16, &[0, 0x3c]).data, Data::F32(vec![1.0]));
        assert_eq!(view(Dtype::BF16, &[0x80, 0x3f]).data, Data::F32(vec![1.0]));
        let minus_two = (-2_i32).to_le_bytes();
        assert_eq!(view(Dtype::I32, &minus_two).data, Data::I64(vec![-2]));
        assert_eq!(view(Dtype::U8, &[0, 3]).data, Data::Bool(vec![false, true]));
    }

    #[test]
    fn axes_are_permuted() {
        let tensor = Tensor::f32(&[2, 3, 1], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let swapped = tensor.permuted(&[1, 2, 0]);
        assert_eq!(swapped.shape, [3, 1, 2]);
        assert_eq!(swapped.into_f32(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        let empty = Tensor::f32(&[0, 3], vec![]).permuted(&[1, 0]);
        assert_eq!(empty, Tensor::f32(&[3, 0], vec![]));
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let tensors = Tensors::from([
            (
                "a".to_owned(),
                Tensor::f32(&[2, 1], vec![1.5, f32::NEG_INFINITY]),
            ),
            ("b".to_owned(), Tensor::f64(&[0, 3], vec![])),
        ]);
        Destination::create(&path).unwrap().write(&tensors).unwrap();
        assert_eq!(read(&path).unwrap(), tensors);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_destination_that_is_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        drop(Destination::create(&folder.path().join("x")).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(Destination::create(folder.path()).is_err());
    }
}
