# slash32. "make help" lists the targets.

PREFIX ?= /usr/local
DESTDIR ?=
BINDIR = $(PREFIX)/bin
SBINDIR = $(PREFIX)/sbin
LIBEXECDIR = $(PREFIX)/libexec/slash32
MANDIR = $(PREFIX)/share/man
DOCDIR = $(PREFIX)/share/doc/slash32
UNITDIR = $(PREFIX)/lib/systemd/system
HOOKDIR = /etc/libvirt/hooks/qemu.d
NFTDIR = $(UNITDIR)/nftables.service.d
NETWORKDDIR = $(PREFIX)/lib/systemd
NMDIR = /etc/NetworkManager

GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS = -s -w -X github.com/slash32/slash32/pkg/version.Version=$(VERSION)
BUILD = $(GO) build -trimpath -ldflags "$(LDFLAGS)" -o bin/
FUZZTIME ?= 30s

UNITS = slash32d.service slash32-responder@.service
MANPAGES = $(wildcard packaging/man/*.[1578])

.DEFAULT_GOAL = build
.PHONY: build test test-clients bench demo fuzz race lint install uninstall clean help

# The older garbage collector takes the responder 50 KiB less for each VM; later
# versions of Go may not have it.
COLLECTOR = $(shell GOEXPERIMENT=nogreenteagc $(GO) env GOEXPERIMENT 2>/dev/null)

build: ## build the four programs into bin/
	CGO_ENABLED=0 $(BUILD) ./cmd/slash32 ./cmd/slash32-hook
	CGO_ENABLED=0 GOEXPERIMENT=$(COLLECTOR) $(BUILD) ./cmd/slash32-responder
	CGO_ENABLED=1 $(BUILD) -tags libvirt_dlopen ./cmd/slash32d

test: ## install what tests need, then run all tests (as root)
	test/setup.sh test
	$(MAKE) --no-print-directory build
	test/run

test-clients: ## install what it needs, then print the matrix of DHCP clients and what each does (as root)
	test/setup.sh clients
	test/matrix

bench: ## install the peers, then print the tables of speed and memory beside theirs (as root)
	test/setup.sh bench
	$(MAKE) --no-print-directory build
	$(GO) run ./test/bench

demo: ## install what it needs, then show a VM's whole life in a lab (as root)
	test/setup.sh demo
	$(MAKE) --no-print-directory build
	$(GO) run ./test/demo

fuzz: ## fuzz every parser for FUZZTIME (30s)
	test/fuzz $(FUZZTIME)

race: ## the packages' tests under the race detector (as root)
	$(GO) test -race -count=1 -tags libvirt_dlopen ./pkg/...

lint: ## go vet, gofmt, staticcheck
	test/lint

install: ## install below PREFIX (/usr/local); with DESTDIR nothing is started or reloaded
	@test -x bin/slash32d || { echo "bin/ is empty. Fix: make build"; exit 1; }
	install -D -m 0755 bin/slash32 $(DESTDIR)$(BINDIR)/slash32
	install -D -m 0755 bin/slash32d $(DESTDIR)$(SBINDIR)/slash32d
	install -D -m 0755 -t $(DESTDIR)$(LIBEXECDIR) bin/slash32-hook bin/slash32-responder
	install -d $(DESTDIR)$(UNITDIR)
	for u in $(UNITS); do \
		sed 's,@SBINDIR@,$(SBINDIR),g; s,@LIBEXECDIR@,$(LIBEXECDIR),g' packaging/systemd/$$u >$(DESTDIR)$(UNITDIR)/$$u || exit 1; \
		chmod 0644 $(DESTDIR)$(UNITDIR)/$$u; \
	done
	install -D -m 0644 packaging/sysusers.d/slash32.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/slash32.conf
	install -D -m 0644 packaging/tmpfiles.d/slash32.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/slash32.conf
	install -D -m 0644 packaging/rt_protos.d/slash32.conf $(DESTDIR)/etc/iproute2/rt_protos.d/slash32.conf
	install -d $(DESTDIR)$(NFTDIR)
	sed 's,@BINDIR@,$(BINDIR),g' packaging/systemd/nftables.service.d/slash32.conf >$(DESTDIR)$(NFTDIR)/slash32.conf
	chmod 0644 $(DESTDIR)$(NFTDIR)/slash32.conf
	if [ -n "$(DESTDIR)" ] || [ -e /lib/systemd/systemd-networkd ]; then \
		install -D -m 0644 packaging/networkd/10-slash32.conf $(DESTDIR)$(NETWORKDDIR)/networkd.conf.d/10-slash32.conf; \
		install -D -m 0644 packaging/networkd/05-slash32.network $(DESTDIR)$(NETWORKDDIR)/network/05-slash32.network; \
	fi
	if [ -n "$(DESTDIR)" ] || [ -d $(NMDIR) ]; then \
		install -D -m 0644 packaging/NetworkManager/conf.d/slash32.conf $(DESTDIR)$(NMDIR)/conf.d/slash32.conf; \
	fi
	install -D -m 0644 packaging/slash32.yaml $(DESTDIR)$(DOCDIR)/slash32.yaml
	install -D -m 0644 packaging/bird/slash32.conf $(DESTDIR)$(DOCDIR)/bird/slash32.conf
	install -D -m 0644 packaging/frr/frr.conf $(DESTDIR)$(DOCDIR)/frr/frr.conf
	for m in $(MANPAGES); do \
		install -D -m 0644 -t $(DESTDIR)$(MANDIR)/man$${m##*.} $$m || exit 1; \
	done
	install -d $(DESTDIR)/etc/slash32/conf.d $(DESTDIR)/etc/slash32/domains.d $(DESTDIR)$(HOOKDIR)
	ln -sfn $(LIBEXECDIR)/slash32-hook $(DESTDIR)$(HOOKDIR)/slash32
ifeq ($(DESTDIR),)
	packaging/activate $(LIBEXECDIR)
endif

uninstall: ## remove what install has put there; your own configuration, lease files and counters stay
ifeq ($(DESTDIR),)
	packaging/deactivate
endif
	rm -f $(DESTDIR)$(HOOKDIR)/slash32
	rm -f $(DESTDIR)$(BINDIR)/slash32 $(DESTDIR)$(SBINDIR)/slash32d
	rm -rf $(DESTDIR)$(LIBEXECDIR) $(DESTDIR)$(DOCDIR)
	rm -f $(addprefix $(DESTDIR)$(UNITDIR)/,$(UNITS))
	rm -f $(DESTDIR)$(PREFIX)/lib/sysusers.d/slash32.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/slash32.conf
	rm -f $(DESTDIR)/etc/iproute2/rt_protos.d/slash32.conf
	rm -f $(DESTDIR)$(NFTDIR)/slash32.conf $(DESTDIR)$(NMDIR)/conf.d/slash32.conf
	rm -f $(DESTDIR)$(NETWORKDDIR)/networkd.conf.d/10-slash32.conf $(DESTDIR)$(NETWORKDDIR)/network/05-slash32.network
	for m in $(notdir $(MANPAGES)); do rm -f $(DESTDIR)$(MANDIR)/man$${m##*.}/$$m; done
	for d in $(HOOKDIR) /etc/slash32/conf.d /etc/slash32/domains.d /etc/slash32 /var/lib/slash32/leases /var/lib/slash32/counters.d /var/lib/slash32 \
		/etc/iproute2/rt_protos.d $(NFTDIR) $(NETWORKDDIR)/networkd.conf.d $(NETWORKDDIR)/network $(UNITDIR) $(dir $(UNITDIR)) $(PREFIX)/lib/sysusers.d $(PREFIX)/lib/tmpfiles.d \
		$(addprefix $(MANDIR)/man,1 5 7 8) $(dir $(DOCDIR)) $(PREFIX)/libexec; do \
		if [ -d $(DESTDIR)$$d ]; then rmdir --ignore-fail-on-non-empty $(DESTDIR)$$d; fi; \
	done
ifeq ($(DESTDIR),)
	if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
endif

clean: ## remove what was built
	rm -rf bin build

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14
