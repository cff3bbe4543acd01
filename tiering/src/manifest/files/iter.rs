//! Walking the files of a list in order, from anywhere.

use std::slice;
use std::sync::Arc;

use super::{Entries, FileList, Part};
use crate::manifest::DataFile;

/// Iterates from some file to the end.
#[derive(Clone, Debug)]
pub struct Files<'a> {
    /// what is left of the nodes on the path, the root first
    parts: Vec<slice::Iter<'a, Arc<Part>>>,
    files: slice::Iter<'a, Arc<DataFile>>,
    tail: slice::Iter<'a, Arc<DataFile>>,
}

impl FileList {
    /// Iterates from the file at `index` on, without visiting those before it.
    pub fn iter_from(&self, index: usize) -> Files<'_> {
        let mut left = index;
        let mut iter = Files { parts: Vec::new(), files: [].iter(), tail: self.tail.iter() };
        let mut parts = &self.parts;
        while let Some(part) = skip_parts(parts, &mut left, &mut iter) {
            match &part.entries {
                Entries::Parts(inner) => parts = inner,
                Entries::Files(files) => {
                    iter.files = files.get(left..).unwrap_or_default().iter();
                    return iter;
                }
            }
        }
        iter.tail = self.tail.get(left..).unwrap_or_default().iter();
        iter
    }
}

/// Passes over the parts that lie wholly within the `left` files to skip; the one to go on in, if it is here.
fn skip_parts<'a>(parts: &'a [Arc<Part>], left: &mut usize, iter: &mut Files<'a>) -> Option<&'a Arc<Part>> {
    let mut rest = parts.iter();
    for part in rest.by_ref() {
        if *left < part.files {
            iter.parts.push(rest);
            return Some(part);
        }
        *left -= part.files;
    }
    None
}

impl<'a> Iterator for Files<'a> {
    type Item = &'a Arc<DataFile>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(file) = self.files.next() {
                return Some(file);
            }
            let Some(innermost) = self.parts.last_mut() else { return self.tail.next() };
            match innermost.next().map(|part| &part.entries) {
                None => drop(self.parts.pop()),
                Some(Entries::Parts(inner)) => self.parts.push(inner.iter()),
                Some(Entries::Files(files)) => self.files = files.iter(),
            }
        }
    }
}

impl<'a> IntoIterator for &'a FileList {
    type Item = &'a Arc<DataFile>;
    type IntoIter = Files<'a>;

    fn into_iter(self) -> Files<'a> {
        self.iter()
    }
}
