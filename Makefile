# A thin front for meson. Build folders: build (what you use), build-asan, build-debug, build-release, build-tsan (what `make check` adds).
#
#   make            the library, the tool and the mount, in build/, and the tests
#   make tool       the library and the tool (which mounts, too) alone
#   make check      everything CI runs: lint, unit and image tests, with gcc and clang, ASan+UBSan and TSan
#   make test       the tests of build/ alone
#   make soak       hours: 10,000 power cuts on traces of real runs, 5,000 on those of mounts, 200 kills, 100,000 operations on each of a few layouts,
#                   40,000 operations of the simulator's workload at mounts, a directory of a million names; every combination
#                   of checksum, block, compression, encryption and replicas; 10,000 places that rot; a filesystem filled and
#                   emptied 100 times, one where a tree is made and deleted 1,000 times, one overwritten 100 times at 90%, the
#                   analyzer without the bound that `make check` sets
#   make sim        whole filesystems on simulated disks that lose power, fail and rot (SEEDS, default 1-100, and what once failed)
#   make sim-soak   the same for HOURS (default 1), from seed SEED on (default: the time)
#   make coverage   which lines of the library unit tests and the simulator run (SEEDS, default 1-100), and why the others don't
#   make demo       shows the main job on real input
#   make bench      benchmarks, as ratios against peers on this machine
#   make fuzz       fuzzers (FUZZ_SECONDS each, default 600)
#   make install    into PREFIX (default /usr/local), DESTDIR is honoured; `ninja -C build uninstall` takes it away
#   make deps       installs what building and testing need (Debian, Ubuntu; elsewhere it names it)
#   make format     clang-format over the sources

PREFIX ?= /usr/local
FUZZ_SECONDS ?= 600
SEEDS ?= 1-100
HOURS ?= 1
SEED ?= $(shell date +%s)

all: build/build.ninja
	meson compile -C build

tool: build/build.ninja
	meson compile -C build kiln:executable kiln:shared_library

build/build.ninja:
	meson setup build --prefix=$(PREFIX)

check:
	scripts/check

test: all
	meson test -C build --print-errorlogs

sim: all
	build/tests/sim/sim --seeds $(SEEDS) -v > build/sim.log || { grep -A3 FAILED build/sim.log; false; }
	grep -E '^(seeds|power|episodes|never|went|cached|options)' build/sim.log
	tests/sim/past.py build/tests/sim/sim
	build/tests/sim/sim --seeds 1-8 --every --ops 10
	tests/sim/upstream.py build/tests/sim/sim 1-20 || [ $$? = 77 ]

sim-soak: all
	tests/sim/soak build/tests/sim/sim $(HOURS) $(SEED)

soak: all
	build/tests/kill/cuts --cuts 10000
	build/tests/kill/cuts --mount --cuts 5000 || [ $$? = 77 ]
	build/tests/kill/kill --kills 200
	build/tests/sim/mounted --seeds 1-40 --ops 500 --rounds 2 || [ $$? = 77 ]
	tests/sim/upstream.py build/tests/sim/sim 1-6 --only clean --ops 1000 --episodes 100 || [ $$? = 77 ]
	KILN_TEST_NAMES=1000000 build/tests/test-engine-batch
	KILN_TEST_ALL=1 meson test -C build image-made engine-data-write --timeout-multiplier 0 --print-errorlogs
	KILN_TEST_ROTS=10000 build/tests/test-engine-rot
	KILN_TEST_MIB=256 KILN_TEST_TIMES=100 KILN_TEST_ROUNDS=20 build/tests/test-engine-copygc
	KILN_TEST_SOAK=1 build/tests/test-engine-small-ring
	KILN_TEST_ROUNDS=100 KILN_TEST_SOAK=1000 meson test -C build image-full --timeout-multiplier 0 --print-errorlogs
	[ -d build-asan ] || CC=clang meson setup build-asan -Db_sanitize=address,undefined -Db_lundef=false -Dbench=false
	TIDY_NODES=225000 scripts/check-tidy build-asan

coverage:
	scripts/coverage $(SEEDS)

demo: all
	scripts/demo build

bench: all
	bench/run build

fuzz:
	fuzz/run $(FUZZ_SECONDS)

install: build/build.ninja
	meson configure build --prefix=$(PREFIX)
	meson compile -C build
	meson install -C build
	@[ -n "$(DESTDIR)" ] || [ -e /sbin/mount.fuse.kiln ] || echo "For fstab: ln -s $(PREFIX)/sbin/mount.kiln $(PREFIX)/sbin/mount.fuse.kiln /sbin/ (kiln-mount(1))"
	@[ -n "$(DESTDIR)" ] || ldconfig -p 2>/dev/null | grep -q libkiln.so.0 || echo "For programs with libkiln: run ldconfig, if $(PREFIX)/lib is where it looks"

deps:
	scripts/install-deps

format:
	git ls-files '*.c' '*.h' | xargs clang-format -i

clean:
	rm -rf build build-*

.PHONY: all tool check test sim sim-soak soak coverage demo bench fuzz install deps format clean
