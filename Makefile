# A thin front for meson. Build folders: build (what you use), build-asan, build-clang, build-tsan (what `make check` adds).
#
#   make            the library, the tool and the mount, in build/
#   make check      everything CI runs: lint, unit and image tests, with gcc and clang, ASan+UBSan and TSan
#   make test       the tests of build/ alone
#   make sim        whole filesystems on simulated disks that lose power (SEEDS, default 1-150)
#   make soak       hours: 10,000 power cuts on traces of real runs, 200 kills, 100,000 operations on each of a few layouts
#   make demo       shows the main job on real input
#   make bench      benchmarks, as ratios against peers on this machine
#   make fuzz       fuzzers (FUZZ_SECONDS each, default 600)
#   make install    into PREFIX (default /usr/local), DESTDIR is honoured
#   make deps       installs what building and testing need (Debian, Ubuntu; elsewhere it names it)
#   make format     clang-format over the sources

PREFIX ?= /usr/local
FUZZ_SECONDS ?= 600
SEEDS ?= 1-150

all: build/build.ninja
	meson compile -C build

build/build.ninja:
	meson setup build --prefix=$(PREFIX)

check:
	scripts/check

test: all
	meson test -C build --print-errorlogs

sim: all
	build/tests/sim/sim --seeds $(SEEDS) --ops 1000
	build/tests/sim/sim --seeds $(SEEDS) --ops 80 --cuts 12
	tests/sim/upstream.py build/tests/sim/sim 1-20 1000 || [ $$? = 77 ]

soak: all
	build/tests/kill/cuts --cuts 10000
	build/tests/kill/kill --kills 200
	if [ -n "$$KILN_UPSTREAM" ]; then tests/sim/upstream.py build/tests/sim/sim 1-6 100000; \
	else for seed in 1 2 3 4 5 6; do build/tests/sim/sim --seed $$seed --ops 100000 || exit; done; fi

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

deps:
	scripts/install-deps

format:
	git ls-files '*.c' '*.h' | xargs clang-format -i

clean:
	rm -rf build build-*

.PHONY: all check test sim soak demo bench fuzz install deps format clean
