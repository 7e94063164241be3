package main

// The values of berth.toml that TOML has no type for: file modes, times, sizes,
// networks and ranges of ports. Each reads its own text, says what is wrong with it
// and what would be right, and writes what it would read back. A file of its own
// because users' files and the client have these values too, and nothing here knows
// a key. The shape of the file is in config.go.

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// fileMode is the permission bits of a file, written "0660" as for chmod(1).
type fileMode uint32

func (fileMode) example() string { return `"0660"` }

// String writes four octal digits.
func (m fileMode) String() string { return fmt.Sprintf("%04o", uint32(m)) }

// MarshalText writes what String says.
func (m fileMode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads three or four octal digits.
func (m *fileMode) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 8, 32)
	if err != nil || len(text) < 3 || len(text) > 4 || n > 0o777 {
		return errorf(`%s is not a file mode; write three or four octal digits, as "0660"`, configQuote(string(text)))
	}
	*m = fileMode(n)
	return nil
}

// duration is a length of time, written "30s", "5m", "24h", "30d" or "1h30m"; "0"
// is none. It is never negative.
type duration time.Duration

// std is d for the standard library.
func (d duration) std() time.Duration { return time.Duration(d) }

func (duration) example() string { return `"5m"` }

// String is the shortest text that UnmarshalText reads back as d.
func (d duration) String() string {
	const day = 24 * time.Hour
	t := time.Duration(d)
	switch {
	case t == 0:
		return "0"
	case t >= 2*day && t%day == 0: // below two days people say "24h"
		return strconv.FormatInt(int64(t/day), 10) + "d"
	}
	s := t.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalText writes what String says.
func (d duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a length of time; a day is 24 hours.
func (d *duration) UnmarshalText(text []byte) error {
	const (
		usage   = `write a time like "30s", "5m", "24h" or "30d"; "0" is none`
		maxDays = math.MaxInt64 / (24 * int64(time.Hour))
	)
	s := string(text)
	switch {
	case s == "0":
		*d = 0
		return nil
	case beginsWith(s, "-"):
		return errorf("%s is negative; %s", configQuote(s), usage)
	case configAllDigits(s):
		return errorf(`%s has no unit; write %[2]q, %[3]q or %[4]q`, configQuote(s), s+"s", s+"m", s+"h")
	}
	var total time.Duration
	rest := s
	if days, after, ok := cutText(s, "d"); ok && configAllDigits(days) {
		n, err := strconv.ParseInt(days, 10, 64)
		if err != nil || n > maxDays {
			return errorf(`%s is too long; the most is "%dd"`, configQuote(s), maxDays)
		}
		total, rest = time.Duration(n)*24*time.Hour, after
	}
	if rest != "" || s == "" {
		// ParseDuration would take a sign and a bare ".5h" here.
		if rest == "" || rest[0] < '0' || rest[0] > '9' {
			return errorf("%s is not a time; %s", configQuote(s), usage)
		}
		t, err := time.ParseDuration(rest)
		if err != nil || t > math.MaxInt64-total {
			return errorf("%s is not a time; %s", configQuote(s), usage)
		}
		total += t
	}
	*d = duration(total)
	return nil
}

// byteSize is a number of bytes, written "10MiB", "5GB" or "1048576"; "0" is none.
// It is never negative.
type byteSize int64

// sizeUnits are the units of byteSize, the binary ones last and rising, for String.
var sizeUnits = [...]struct {
	name  string
	bytes int64
}{
	{"", 1}, {"B", 1}, {"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
}

func (byteSize) example() string { return `"10MiB"` }

// String is n in the largest binary unit that holds it exactly, which UnmarshalText reads back.
func (n byteSize) String() string {
	if n == 0 {
		return "0"
	}
	for _, u := range slices.Backward(sizeUnits[:]) {
		if int64(n)%u.bytes == 0 && (u.bytes >= 1<<10 && u.bytes&(u.bytes-1) == 0 || u.name == "B") {
			return strconv.FormatInt(int64(n)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(n), 10)
}

// MarshalText writes what String says.
func (n byteSize) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText reads a whole number with one of the units, upper and lower case as
// written there: "m" for a million and "M" for a mebibyte is a guess nobody shares.
func (n *byteSize) UnmarshalText(text []byte) error {
	const usage = `write a size like "10MiB", "2GiB" or "500kB"; "0" is none`
	s := string(text)
	digits := s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
	unit := s[len(digits):]
	switch {
	case beginsWith(s, "-"):
		return errorf("%s is negative; %s", configQuote(s), usage)
	case digits == "":
		return errorf("%s is not a size; %s", configQuote(s), usage)
	case unit[:min(1, len(unit))] == ".":
		return errorf(`%s is not a whole number; use a smaller unit, as "1536MiB" for one and a half GiB`, configQuote(s))
	}
	for _, u := range sizeUnits {
		if u.name != unit {
			continue
		}
		v, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || v > math.MaxInt64/u.bytes {
			return errorf(`%s is too large; the most is "%d"`, configQuote(s), int64(math.MaxInt64))
		}
		*n = byteSize(v * u.bytes)
		return nil
	}
	if meant := strings.TrimSpace(unit); len(digits) < maxQuoted && len(meant) > 0 {
		if i := strings.IndexByte("kmgt", meant[0]|0x20); i >= 0 {
			binary := [...]string{"KiB", "MiB", "GiB", "TiB"}[i]
			return errorf("%s has no known unit; write %q", configQuote(s), digits+binary)
		}
	}
	return errorf("%s has no known unit; %s", configQuote(s), usage)
}

// network is a prefix or a single address, written "10.0.0.0/8" or "192.0.2.7".
// IPv4-mapped IPv6 is kept unmapped. The zero value contains nothing.
type network struct{ netip.Prefix }

func (network) example() string { return `"10.0.0.0/8"` }

// contains tells whether a is in n. It unmaps a and drops its zone first, so that
// what a dual-stack socket reports compares as it was written.
func (n network) contains(a netip.Addr) bool {
	return n.Prefix.Contains(a.Unmap().WithZone(""))
}

// String leaves out the length of a single address; the zero value is "".
func (n network) String() string {
	switch {
	case !n.IsValid():
		return ""
	case n.IsSingleIP():
		return n.Addr().String()
	}
	return n.Prefix.String()
}

// MarshalText writes what String says.
func (n network) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText refuses what could mean two things, as bits set below the prefix
// length: a filter that guesses lets the wrong people in.
func (n *network) UnmarshalText(text []byte) error {
	const usage = `write "10.0.0.0/8", "2001:db8::/32" or a single address`
	s := string(text)
	var p netip.Prefix
	if hasText(s, "/") {
		parsed, err := netip.ParsePrefix(s)
		if err != nil {
			return errorf("%s is not a network; %s", configQuote(s), usage)
		}
		p = parsed
	} else {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return errorf("%s is not a network; %s", configQuote(s), usage)
		}
		if a.Zone() != "" {
			return errorf("%s has a zone, which networks do not have; write %q", configQuote(s), a.WithZone("").String())
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	const mappedBits = 96 // ::ffff:0:0/96, RFC 4291 section 2.5.5.2
	if p.Addr().Is4In6() {
		if p.Bits() < mappedBits {
			return errorf("%s mixes IPv4 and IPv6; write the two networks one by one", configQuote(s))
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mappedBits)
	}
	if p != p.Masked() {
		return errorf("%s has address bits behind the prefix; write %q for the network or %q for the address",
			configQuote(s), p.Masked(), p.Addr())
	}
	n.Prefix = p
	return nil
}

// portRange is the ports from Low to High, both included, written "50000-50999" or
// "50000"; the zero value, written "", means any port.
type portRange struct{ Low, High uint16 }

func (portRange) example() string { return `"50000-50999"` }

// String is "" for any port.
func (r portRange) String() string {
	switch {
	case r == portRange{}:
		return ""
	case r.Low == r.High:
		return itoa(int(r.Low))
	}
	return fmt.Sprintf("%d-%d", r.Low, r.High)
}

// MarshalText writes what String says.
func (r portRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads a range of unprivileged ports.
func (r *portRange) UnmarshalText(text []byte) error {
	s := string(text)
	if s == "" {
		*r = portRange{}
		return nil
	}
	first, last, ok := cutText(s, "-")
	if !ok {
		last = first
	}
	low, errLow := strconv.ParseUint(first, 10, 16)
	high, errHigh := strconv.ParseUint(last, 10, 16)
	switch {
	case errLow != nil || errHigh != nil:
		return errorf(`%s is not a range of ports; write "50000-50999", one port, or "" for any`, configQuote(s))
	case low > high:
		return errorf(`%s runs backwards; write "%d-%d"`, configQuote(s), high, low)
	case low < minDataPort:
		return errorf(`%s has ports below %d, which data connections never use; write "50000-50999"`, configQuote(s), minDataPort)
	}
	*r = portRange{uint16(low), uint16(high)}
	return nil
}

// configAllDigits tells whether s is nothing but one or more ASCII digits.
func configAllDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
