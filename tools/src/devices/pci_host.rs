//! PCI configuration mechanism 1 with nothing behind it but a host bridge.
//!
//! It is here because an operating system that finds no configuration mechanism at all complains; every other
//! device reads as absent. PCI Local Bus specification 3.0, 3.2.2.3.2 and 6.1.

/// The configuration address and data registers.
#[derive(Debug, Default)]
pub struct PciHost {
    address: u32,
}

/// Bit 31 of the address lets the data register speak.
const ENABLE: u32 = 1 << 31;

/// The host bridge's header: Intel's generic virtual host bridge, class 06 00 00.
const HOST_BRIDGE: [u32; 3] = [0x0d57_8086, 0, 0x0600_0000];

impl PciHost {
    /// Selects a register.
    pub fn select(&mut self, address: u32) {
        self.address = address & 0x80ff_fffc;
    }

    /// The selected register's address.
    pub fn address(&self) -> u32 {
        self.address
    }

    /// Reads `data.len()` bytes at `offset` (0 to 3) in the selected register.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let register = (self.address >> 2) as usize & 0x3f;
        let value = match self.address & (ENABLE | 0x00ff_ff00) {
            ENABLE => HOST_BRIDGE.get(register).copied().unwrap_or(0),
            _ => u32::MAX,
        };
        let bytes = value.to_le_bytes();
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(usize::from(offset) + at).copied().unwrap_or(0xff);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_bridge_is_there() {
        let mut host = PciHost::default();
        let mut data = [0; 4];
        host.read(0, &mut data);
        assert_eq!(data, [0xff; 4], "not enabled");
        host.select(ENABLE);
        assert_eq!(host.address(), ENABLE);
        host.read(0, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x0d57_8086);
        host.select(ENABLE | 8);
        let mut class = [0; 2];
        host.read(2, &mut class);
        assert_eq!(class, [0x00, 0x06]);
        for absent in [1 << 8, 1 << 11, 1 << 16] {
            host.select(ENABLE | absent);
            host.read(0, &mut data);
            assert_eq!(data, [0xff; 4]);
        }
        host.read(3, &mut data);
    }
}
