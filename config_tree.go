package main

// From TOML to a tree of maps: tables are map[string]any, lists []any, and the rest
// string, int64, float64, bool or tomlMoment. go-toml's parser decides what is TOML;
// which keys may follow which, and what a number or a date is worth, is decided here,
// with go-toml's own rules and words (config_tree_test.go holds the two side by side).
// toml.Unmarshal would do the same, but it brings its decoding into Go types along,
// which nothing here uses: 390 KB of a program that is to stay below 12 MiB. That is
// why this stands in a file of its own and not behind that call.

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2/unstable"
)

// tomlError is the first mistake of a document.
type tomlError struct {
	at      configPosition
	key     []string // the key that stands where it must not; nil if the mistake is another
	problem string
}

func (e *tomlError) Error() string { return e.problem }

// tomlTree reads a whole document, or tells its first mistake.
func tomlTree(data []byte) (map[string]any, *tomlError) {
	var p unstable.Parser
	p.Reset(data)
	root := &tomlTable{kind: tomlHeaderTable, values: map[string]any{}}
	current := root
	for p.NextExpression() {
		e := p.Expression()
		var err error
		switch e.Kind {
		case unstable.Table:
			current, err = root.header(e)
		case unstable.ArrayTable:
			current, err = root.element(e)
		default:
			err = current.keyValue(e)
		}
		if err != nil {
			return nil, tomlMistake(&p, e, err)
		}
	}
	if err := p.Error(); err != nil {
		return nil, tomlMistake(&p, nil, err)
	}
	return root.values, nil
}

// tomlMistake gives an error its place. One about a value, or of the parser, points
// into the document; any other is about the key of e.
func tomlMistake(p *unstable.Parser, e *unstable.Node, err error) *tomlError {
	found := &tomlError{problem: err.Error()}
	data, offset := p.Data(), 0
	var pe *unstable.ParserError
	if errors.As(err, &pe) {
		// Slices of one array end at the same place, so their capacities tell how
		// far apart they begin.
		offset = cap(data) - cap(pe.Highlight)
		if len(pe.Highlight) == 0 && offset == len(data) && offset > 0 {
			offset-- // the end of the document has no place of its own
		}
	} else {
		for k := e.Key(); k.Next(); {
			if found.key == nil {
				offset = int(k.Node().Raw.Offset)
			}
			found.key = append(found.key, string(k.Node().Data))
		}
	}
	before := data[:offset]
	found.at.Line = bytes.Count(before, []byte("\n")) + 1
	found.at.Column = offset - (bytes.LastIndexByte(before, '\n') + 1) + 1
	return found
}

// --- tables ---

// tomlKind is how a key came to be, which decides what may follow: go-toml's words.
type tomlKind string

const (
	tomlValue       tomlKind = "value"       // complete as it stands, an inline table too
	tomlDottedTable tomlKind = "kv-table"    // from a.b = 1: only such keys add to it
	tomlHeaderTable tomlKind = "table"       // from [a], or from [a.b] on the way to b
	tomlTableArray  tomlKind = "array-table" // from [[a]]; values are its last element's
)

// tomlTable is one key of the document with what is below it.
type tomlTable struct {
	kind   tomlKind
	headed bool // had a [header] of its own, and may not have another
	keys   map[string]*tomlTable
	values map[string]any // nil for a value
}

// add makes a key below t. Its table, if it is to be one, goes into the tree.
//
//go:noinline
func (t *tomlTable) add(name string, kind tomlKind) *tomlTable {
	child := &tomlTable{kind: kind}
	if t.keys == nil {
		t.keys = map[string]*tomlTable{}
	}
	t.keys[name] = child
	if kind == tomlDottedTable || kind == tomlHeaderTable {
		child.values = map[string]any{}
		t.values[name] = child.values
	}
	return child
}

// above walks to the table that the last part of a header belongs in.
func (t *tomlTable) above(e *unstable.Node) (table *tomlTable, last string, err error) {
	for k := e.Key(); k.Next(); {
		last = string(k.Node().Data)
		if k.IsLast() {
			break
		}
		child := t.keys[last]
		if child == nil {
			child = t.add(last, tomlHeaderTable)
		} else if child.kind == tomlValue {
			return nil, "", errorf("key %s already exists as a value", last)
		}
		t = child
	}
	return t, last, nil
}

// header is the table of [e], from the root t.
func (t *tomlTable) header(e *unstable.Node) (*tomlTable, error) {
	t, name, err := t.above(e)
	if err != nil {
		return nil, err
	}
	child := t.keys[name]
	if child == nil {
		child = t.add(name, tomlHeaderTable)
	}
	switch {
	case child.kind == tomlDottedTable:
		return nil, errorf("table %s already exists as defined by a dotted key", name)
	case child.kind == tomlTableArray:
		return nil, errorf("table %s already exists as an array of tables", name)
	case child.kind == tomlValue:
		return nil, errorf("key %s should be a table, not a %s", name, child.kind)
	case child.headed:
		return nil, errorf("table %s already exists", name)
	}
	child.headed = true
	return child, nil
}

// element is the new last table of the array [[e]], from the root t.
func (t *tomlTable) element(e *unstable.Node) (*tomlTable, error) {
	t, name, err := t.above(e)
	if err != nil {
		return nil, err
	}
	child := t.keys[name]
	if child == nil {
		child = t.add(name, tomlTableArray)
	} else if child.kind != tomlTableArray {
		return nil, errorf("key %s already exists as a %s, but should be an array table", name, child.kind)
	}
	child.keys, child.values = nil, map[string]any{} // the new element has no keys yet
	list, _ := t.values[name].([]any)
	t.values[name] = append(list, child.values)
	return child, nil
}

// keyValue puts the key and value of e below t.
func (t *tomlTable) keyValue(e *unstable.Node) error {
	// Every key is checked, those of inline tables too, before any value is looked
	// at: the first of two mistakes is the one that is told.
	if err := t.claim(e); err != nil {
		return err
	}
	value, err := tomlValueOf(e.Value())
	if err != nil {
		return err
	}
	tomlSet(t.values, e, value)
	return nil
}

// claim notes the key of e, and those inside its value, as taken.
func (t *tomlTable) claim(e *unstable.Node) error {
	for k := e.Key(); k.Next(); {
		name := string(k.Node().Data)
		child := t.keys[name]
		if child != nil && (k.IsLast() || child.kind != tomlDottedTable) {
			return errorf("key %s is already defined", name)
		}
		switch {
		case k.IsLast():
			return t.add(name, tomlValue).claimInside(e.Value())
		case child == nil:
			child = t.add(name, tomlDottedTable)
		}
		t = child
	}
	return nil
}

// claimInside does so for a value: t is the key it belongs to.
func (t *tomlTable) claimInside(value *unstable.Node) error {
	for c := value.Children(); c.Next(); {
		switch n := c.Node(); {
		case value.Kind == unstable.InlineTable:
			if t.values == nil {
				t.values = map[string]any{} // for add; tomlValueOf makes the real one
			}
			if err := t.claim(n); err != nil {
				return err
			}
		case n.Kind == unstable.InlineTable || n.Kind == unstable.Array:
			if err := new(tomlTable).claimInside(n); err != nil {
				return err
			}
		}
	}
	return nil
}

// tomlSet puts value below the key of e, which claim has found free.
func tomlSet(m map[string]any, e *unstable.Node, value any) {
	for k := e.Key(); k.Next(); {
		name := string(k.Node().Data)
		if k.IsLast() {
			m[name] = value
			return
		}
		below, ok := m[name].(map[string]any)
		if !ok {
			below = map[string]any{}
			m[name] = below
		}
		m = below
	}
}

// --- values ---

// tomlValueOf is the value of a node.
func tomlValueOf(n *unstable.Node) (any, error) {
	switch n.Kind {
	case unstable.String:
		return string(n.Data), nil
	case unstable.Integer:
		return tomlInteger(n.Data)
	case unstable.Float:
		return tomlFloat(n.Data)
	case unstable.Bool:
		return n.Data[0] == 't', nil
	case unstable.Array:
		list := []any{}
		for c := n.Children(); c.Next(); {
			if c.Node().Kind == unstable.Comment {
				continue
			}
			v, err := tomlValueOf(c.Node())
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	case unstable.InlineTable:
		table := map[string]any{}
		for c := n.Children(); c.Next(); {
			v, err := tomlValueOf(c.Node().Value())
			if err != nil {
				return nil, err
			}
			tomlSet(table, c.Node(), v)
		}
		return table, nil
	}
	return tomlMomentOf(n.Kind, n.Data)
}

func tomlInteger(b []byte) (int64, error) {
	digits, base, name := strings.ReplaceAll(string(b), "_", ""), 10, "decimal"
	if len(b) > 2 && b[0] == '0' {
		switch b[1] {
		case 'x':
			digits, base, name = digits[2:], 16, "hexadecimal"
		case 'o':
			digits, base, name = digits[2:], 8, "octal"
		case 'b':
			digits, base, name = digits[2:], 2, "binary"
		}
	}
	n, err := strconv.ParseInt(digits, base, 64)
	if err != nil { // the parser has seen to the digits
		return 0, unstable.NewParserError(b, "%s number is too large to fit in a 64-bit signed integer", name)
	}
	return n, nil
}

func tomlFloat(b []byte) (float64, error) {
	digits := strings.ReplaceAll(string(b), "_", "")
	if strings.HasSuffix(digits, "nan") { // with a sign, too, which strconv does not know
		return math.NaN(), nil
	}
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		return 0, unstable.NewParserError(b, "unable to parse float: %s", err)
	}
	return f, nil
}

// tomlMoment is a date, a time or both. No key of berth takes one, so all that is
// kept is how it reads in an error.
type tomlMoment struct{ text string }

func (m tomlMoment) String() string { return m.text }

// tomlMomentOf checks what the parser took for a date or time by its first letters.
func tomlMomentOf(kind unstable.Kind, b []byte) (tomlMoment, error) {
	r := momentReader{rest: b}
	switch kind {
	case unstable.LocalDate:
		r.date()
	case unstable.LocalTime:
		r.time()
		if len(r.rest) > 0 {
			r.fail(r.rest, "extra characters at the end of a local time")
		}
	case unstable.LocalDateTime:
		r.dateTime()
		if len(r.rest) > 0 {
			r.fail(r.rest, "extra characters at the end of a local date time")
		}
	default:
		r.dateTime()
		r.zone()
	}
	return tomlMoment{r.text}, r.err
}

// momentReader takes a moment from the front of rest. Its first error stays; what is
// read after that has no meaning.
type momentReader struct {
	rest             []byte
	err              error
	year, month, day int
	hour, min, sec   int
	nanosecond       int
	text             string
}

//go:noinline
func (r *momentReader) fail(at []byte, problem string) {
	if r.err == nil {
		r.err = unstable.NewParserError(at, "%s", problem)
	}
}

// digits is the number that b is, which is to be at most limit.
func (r *momentReader) digits(b []byte, limit int, beyond string) int {
	n := 0
	for i, c := range b {
		if c < '0' || c > '9' {
			r.fail(b[i:i+1], "expected digit (0-9)")
			return 0
		}
		n = n*10 + int(c-'0')
	}
	if n > limit {
		r.fail(b, beyond)
	}
	return n
}

// date takes all of rest.
func (r *momentReader) date() {
	b := r.rest
	if len(b) != 10 || b[4] != '-' || b[7] != '-' {
		r.fail(b, "dates are expected to have the format YYYY-MM-DD")
		return
	}
	r.year = r.digits(b[:4], 9999, "")
	r.month = r.digits(b[5:7], 99, "")
	r.day = r.digits(b[8:], 99, "")
	if r.month < 1 || r.month > 12 {
		r.fail(b[5:7], "impossible date")
	}
	// A day that the month has not got becomes one of its neighbour.
	if time.Date(r.year, time.Month(r.month), r.day, 0, 0, 0, 0, time.UTC).Day() != r.day {
		r.fail(b[8:], "impossible date")
	}
	r.text, r.rest = string(b), nil
}

// time leaves what follows it.
func (r *momentReader) time() {
	b := r.rest
	if len(b) < 5 {
		r.fail(b, "times are expected to have the format HH:MM[:SS[.NNNNNN]]")
		return
	}
	r.hour = r.digits(b[:2], 23, "hour cannot be greater 23")
	if b[2] != ':' {
		r.fail(b[2:3], "expecting colon between hours and minutes")
	}
	r.min = r.digits(b[3:5], 59, "minutes cannot be greater 59")
	b = b[5:]
	fraction := ""
	if len(b) > 0 && b[0] == ':' {
		if len(b) < 3 {
			r.fail(b, "incomplete seconds")
			return
		}
		r.sec = r.digits(b[1:3], 59, "seconds cannot be greater than 59")
		b = b[3:]
		if len(b) > 0 && b[0] == '.' {
			n := 1
			for n < len(b) && b[n] >= '0' && b[n] <= '9' {
				n++
			}
			if n == 1 {
				r.fail(b[:1], "need at least one digit after fraction point")
			}
			fraction = string(b[1:min(n, 10)]) // to the nanosecond
			b = b[n:]
		}
	}
	r.nanosecond, _ = strconv.Atoi((fraction + "000000000")[:9])
	r.text += fmt.Sprintf("%02d:%02d:%02d", r.hour, r.min, r.sec)
	if fraction != "" {
		r.text += "." + fraction
	}
	r.rest = b
}

// dateTime leaves what follows it.
func (r *momentReader) dateTime() {
	b := r.rest
	if len(b) < 11 {
		r.fail(b, "local datetimes are expected to have the format YYYY-MM-DDTHH:MM[:SS[.NNNNNNNNN]]")
		return
	}
	r.rest = b[:10]
	r.date()
	if b[10] != 'T' && b[10] != 't' && b[10] != ' ' {
		r.fail(b[10:11], "datetime separator is expected to be T or a space")
	}
	r.text += "T"
	r.rest = b[11:]
	r.time()
}

// zone takes all of rest, and turns the text into that of a time.Time.
func (r *momentReader) zone() {
	b, zone := r.rest, time.UTC
	switch {
	case len(b) == 0:
		r.fail(b, "date-time is missing timezone")
	case b[0] == 'Z' || b[0] == 'z':
		if len(b) > 1 {
			r.fail(b[1:], "extra bytes at the end of the timezone")
		}
	case len(b) != 6:
		r.fail(b, "invalid date-time timezone")
	default:
		if b[0] != '+' && b[0] != '-' {
			r.fail(b[:1], "invalid timezone offset character")
		}
		if b[3] != ':' {
			r.fail(b[3:4], "expected a : separator")
		}
		seconds := 3600*r.digits(b[1:3], 23, "invalid timezone offset hours") +
			60*r.digits(b[4:], 59, "invalid timezone offset minutes")
		if b[0] == '-' {
			seconds = -seconds
		}
		if seconds != 0 {
			zone = time.FixedZone("", seconds)
		}
	}
	r.text = time.Date(r.year, time.Month(r.month), r.day, r.hour, r.min, r.sec, r.nanosecond, zone).String()
}
