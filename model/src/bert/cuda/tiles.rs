//! How products are cut into tiles for the blocks of a card.

/// The shape of a block's work in a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tiles {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Of a step along the inner dimension.
    step: usize,
    /// Of a warp, or of a warp group where there is wgmma.
    part: (usize, usize),
    /// Steps under way at once.
    stages: usize,
    groups: bool,
}

/// The sizes of tiles, by the name that the kernels have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Large,
    Small,
    Tiny,
}

impl Size {
    pub(super) const ALL: [Self; 3] = [Self::Large, Self::Small, Self::Tiny];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Large => "large",
            Self::Small => "small",
            Self::Tiny => "tiny",
        }
    }

    /// The tiles of this size; on Hopper the large ones are for its warp groups.
    pub(super) fn tiles(self, hopper: bool) -> Tiles {
        let (rows, columns, step, part, stages) = match self {
            Self::Large if hopper => (128, 128, 64, (64, 128), 3),
            Self::Large => (128, 128, 32, (64, 32), 4),
            Self::Small => (64, 64, 64, (32, 32), 3),
            Self::Tiny => (32, 32, 64, (16, 16), 4),
        };
        Tiles { rows, columns, step, part, stages, groups: hopper && self == Self::Large }
    }

    /// The largest with which a product of `rows` by `columns` gives most processors of the card a
    /// block: fewer read the inputs less often, more are done sooner.
    pub(super) fn of(rows: usize, columns: usize, processors: usize, hopper: bool) -> Self {
        let keeps_busy = |size: &Self| {
            let tiles = size.tiles(hopper);
            columns.is_multiple_of(tiles.columns)
                && rows.div_ceil(tiles.rows) * (columns / tiles.columns) >= processors * 3 / 4
        };
        [Self::Large, Self::Small].into_iter().find(keeps_busy).unwrap_or(Self::Tiny)
    }
}

impl Tiles {
    pub(super) fn threads(self) -> usize {
        let (rows, columns) = self.part;
        let parts = (self.rows / rows) * (self.columns / columns);
        parts * if self.groups { 128 } else { 32 }
    }

    /// Bytes of shared memory: tiles of halves, and where they must start at a multiple of 1024, that.
    pub(super) fn shared(self) -> usize {
        let tile = (self.rows + self.columns) * self.step * 2;
        self.stages * tile + if self.groups { 1024 } else { 0 }
    }

    /// As the kernels read them.
    pub(super) fn define(self, size: Size) -> [String; 2] {
        let Self { rows, columns, step, part, stages, .. } = self;
        let name = size.name().to_uppercase();
        [
            format!("-D{name}={rows},{columns},{step},{},{},{stages}", part.0, part.1),
            format!("-D{name}_THREADS={}", self.threads()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_grow_with_the_work() {
        let of = |rows, columns| Size::of(rows, columns, 132, true);
        assert_eq!(of(16, 1152), Size::Tiny);
        assert_eq!(of(1024, 1152), Size::Small);
        assert_eq!(of(16384, 384), Size::Large);
        // 192 columns are no multiple of 128.
        assert_eq!(of(65536, 192), Size::Small);
    }

    #[test]
    fn a_block_fits_every_card_that_is_served() {
        for hopper in [false, true] {
            for size in Size::ALL {
                let tiles = size.tiles(hopper);
                // What a block may have: 99 KiB before Hopper, 227 KiB from there on, for two blocks.
                let most = if hopper { 227 / 2 } else { 99 } * 1024;
                assert!(tiles.shared() <= most, "{size:?}");
                assert!(tiles.threads() <= 256 && tiles.threads().is_multiple_of(32));
                // A warp's own 16 rows, with room that keeps banks apart, lie where the tiles lay.
                let warps = tiles.threads() / 32;
                let finish = warps * 16 * (tiles.part.1 + 8) * 2;
                assert!(finish <= tiles.stages * (tiles.rows + tiles.columns) * tiles.step * 2);
                // Each thread copies as many chunks of 8 numbers as the others.
                for rows in [tiles.rows, tiles.columns] {
                    assert!((rows * tiles.step / 8).is_multiple_of(tiles.threads()), "{size:?}");
                }
            }
        }
        assert_eq!(
            Size::Tiny.tiles(true).define(Size::Tiny),
            ["-DTINY=32,32,64,16,16,4", "-DTINY_THREADS=128"]
        );
    }
}
