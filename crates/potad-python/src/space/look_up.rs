//! From any address to the allocation it lies in.

use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::Space;
use crate::descriptor::Descriptor;
use crate::errors::raise;
use crate::objects::tuple;
use crate::{arrays, convert};

#[pymethods]
impl Space {
    /// The allocation that an address lies in, at its start or anywhere inside.
    ///
    /// Arguments:
    ///     address: from 0 to 2**64 - 1, whether in the space or not.
    ///
    /// Returns: its `Descriptor`, or None where nothing is allocated.
    ///
    /// Raises:
    ///     ValueError, TypeError, OverflowError: `address` is not as above.
    ///
    /// Takes a few words of memory at each of the tree's levels.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> space.alloc_at(65536, 40960)
    /// 65536
    /// >>> space.lookup(100000)
    /// Descriptor(start=0x10000, size=40960)
    /// >>> space.lookup(0) is None
    /// True
    #[pyo3(signature = (address))]
    fn lookup(&self, py: Python<'_>, address: &Bound<'_, PyAny>) -> PyResult<Option<Descriptor>> {
        let address = convert::address("address", address)?;
        self.shared.attached(py, |state| {
            let found = state.lookup(address);
            let found = found
                .map(|found| Descriptor::new(py, &self.shared, state, found.start, found.size));
            found.transpose()
        })
    }

    /// The allocations that many addresses lie in.
    ///
    /// Arguments:
    ///     addresses: as for `free_many`; any addresses, in any order.
    ///
    /// Returns: two arrays of uint64, the start and the size of the allocation each address lies
    /// in; both are 0 where nothing is allocated, and only there is the size.
    ///
    /// Raises:
    ///     OverflowError: an address is not below 2**64; or one allocation covers all 2**64
    ///         addresses, whose size uint64 cannot hold (`lookup` can tell it).
    ///     ValueError, TypeError: `addresses` is not as above.
    ///     MemoryError: there is no memory for the arrays.
    ///
    /// Takes nanoseconds an address, and lets other threads run meanwhile.
    ///
    /// >>> import potad
    /// >>> space = potad.Space(1 << 20)
    /// >>> space.alloc_at(65536, 40960)
    /// 65536
    /// >>> starts, sizes = space.lookup_many([0, 65536, 100000])
    /// >>> starts.tolist(), sizes.tolist()
    /// ([0, 65536, 65536], [0, 40960, 40960])
    #[pyo3(signature = (addresses))]
    fn lookup_many<'py>(
        &self,
        py: Python<'py>,
        addresses: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let mut starts = arrays::addresses("addresses", addresses)?;
        let mut sizes = arrays::room(py, starts.len())?;
        let fits = self.shared.long(py, |space| {
            for address in &mut starts {
                let found = space.lookup(*address);
                let Ok(size) = u64::try_from(found.map_or(0, |found| found.size)) else {
                    return Ok(false);
                };
                *address = found.map_or(0, |found| found.start);
                sizes.push(size);
            }
            Ok(true)
        })?;
        if !fits {
            let message = "an allocation has all 2**64 addresses, a size that uint64 cannot hold";
            return Err(raise::<PyOverflowError>(py, message));
        }
        let (starts, sizes) = (arrays::array(py, &mut starts)?, arrays::array(py, &mut sizes)?);
        tuple(py, [starts.into_any(), sizes.into_any()])
    }
}
