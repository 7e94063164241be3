// verbs.go is the command line as data: what a verb and its options are, how the
// words after berth are read, and how a verb ends. The table itself is in main.go
// for the daemon's verbs and in client_verbs.go for the client's; parsing, -h,
// help, the man page and completion read nothing else. It is a file of its own
// because main.go is about running a daemon and this about words.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A verb is one word of the command line.
type verb struct {
	name     string
	args     string // as the usage line shows them
	help     string // one line
	text     string // paragraphs for help and the man page, separated by an empty line
	options  []option
	examples []example
	words    wordKind // what the arguments are, for completion
	values   []string // the words that the argument may be, where they are few
	min, max int      // how many arguments; max < 0: any number
	command  bool     // the words behind the first argument are another program's
	raw      bool     // reads its arguments itself
	client   bool     // one of the second group: a client's
	// ownSignals: it catches signals itself, and the context does not end with them.
	ownSignals bool
	run        func(inv *invocation) error
}

// An example is a line to type and what it does.
type example struct{ line, what string }

// An option is what may be given to a verb as --name, or -short.
type option struct {
	name  string // without the dashes
	short byte   // 0: none
	arg   string // what its value is called; empty: it has none
	help  string
	def   string // its value where none is given
	multi bool   // may be given several times
	other string // the option that the short form is if a number follows: mkdir's -p
	check func(value string) error
	// values are all that the value may be, where they are few
	values []string
}

// A wordKind tells what the arguments of a verb are.
type wordKind byte

const (
	noWords     wordKind = iota
	hostWords            // HOST
	remoteWords          // HOST:PATH
	localWords           // files here
	bothWords            // either
	verbWords            // names of verbs
)

// An invocation is a verb as somebody has called it.
type invocation struct {
	verb    *verb
	args    []string // without the options
	tail    []string // the other program's words, for verbs with command
	values  map[string][]string
	given   []givenOption // in order
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer
	boxes   []*box          // that client verbs have talked to
	refused bool            // names that a box has sent: exit code 1
	within  *shellPlace     // the shell that calls; nil: none
	ctx     context.Context // ends with the first SIGINT, SIGTERM or SIGHUP; client verbs have one
	pause   time.Duration   // before a lost connection is made again; 0: the engine's own
}

// A givenOption is an option with the value that it was given.
type givenOption struct{ name, value string }

// on tells whether a switch was given.
//
//go:noinline
func (inv *invocation) on(name string) bool { return len(inv.values[name]) > 0 }

// str is the value of an option, the last one if there are several.
//
// Not inlined, as usageErr.
//
//go:noinline
func (inv *invocation) str(name string) string {
	if all := inv.values[name]; len(all) > 0 {
		return all[len(all)-1]
	}
	for i := range inv.verb.options {
		if inv.verb.options[i].name == name {
			return inv.verb.options[i].def
		}
	}
	return ""
}

// number, period and bytes are values that check has seen: wholeNumber, aDuration, aSize.
func (inv *invocation) number(name string) int {
	n, _ := strconv.Atoi(inv.str(name))
	return n
}

func (inv *invocation) period(name string) time.Duration {
	var d duration
	d.UnmarshalText([]byte(inv.str(name)))
	return d.std()
}

func (inv *invocation) bytes(name string) int64 {
	var b byteSize
	b.UnmarshalText([]byte(inv.str(name)))
	return int64(b)
}

// wholeNumber, aDuration and aSize are checks of options.
func wholeNumber(value string) error {
	if n, err := strconv.Atoi(value); err != nil || n < 0 {
		return errorf("%s is not a number; write one as 4", configQuote(value))
	}
	return nil
}

func aDuration(value string) error { return new(duration).UnmarshalText([]byte(value)) }

func aSize(value string) error { return new(byteSize).UnmarshalText([]byte(value)) }

func aboveZero(value string) error {
	if n, err := strconv.Atoi(value); err != nil || n < 1 {
		return errorf("%s is not a number above 0; write one as 4", configQuote(value))
	}
	return nil
}

func portNumber(value string) error {
	if n, err := strconv.Atoi(value); err != nil || n < 1 || n > 65535 {
		return errorf("%s is not a port; write a number from 1 to 65535", configQuote(value))
	}
	return nil
}

// --- how verbs end ---

// verbError ends a verb with an exit code of contract section 9. Without text,
// what there is to say was said already.
type verbError struct {
	code int
	text string
}

func (e *verbError) Error() string { return e.text }

// usageErr is an error for what was typed wrong: exit code 2.
//
// Not inlined: it stands in so many places, none of them hot, that its copies would be
// 10 KB of the program.
//
//go:noinline
func usageErr(format string, args ...any) error {
	return &verbError{exitUsage, fmt.Sprintf(format, args...)}
}

// exitWith ends a verb that has said what there is to say.
//
//go:noinline
func exitWith(code int) error {
	if code == exitOK {
		return nil
	}
	return &verbError{code: code}
}

// exitCode is the exit code that an error stands for.
func exitCode(err error) int {
	var v *verbError
	var c *connError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &v):
		return v.code
	case errors.Is(err, errMismatch):
		return exitMismatch
	case errors.As(err, &c):
		return exitNoConn
	}
	return exitFailed
}

// --- reading words ---

// findVerb is the verb with that name, or nil.
func findVerb(name string) *verb {
	all := verbs()
	for i := range all {
		if all[i].name == name {
			return &all[i]
		}
	}
	return nil
}

// call runs the verb with the words behind its name.
func (v *verb) call(words []string, stdin io.Reader, stdout, stderr io.Writer) int {
	inv := &invocation{verb: v, stdin: stdin, stdout: stdout, stderr: stderr, ctx: context.Background()}
	err := inv.read(words)
	if errors.Is(err, errHelp) {
		v.usage(stdout)
		return exitOK
	}
	if err == nil && v.client {
		err = runClient(inv)
	} else if err == nil {
		err = v.run(inv)
	}
	if err != nil && err.Error() != "" {
		fmt.Fprintf(stderr, "berth %s: %v\n", v.name, err)
	}
	return exitCode(err)
}

var errHelp = errors.New("help is wanted")

// read takes words apart: options wherever they stand, as GNU programs do, short
// ones also together (-la, -j4), until "--". A verb with command takes options
// before the first argument and right behind it; the rest is the other program's.
func (inv *invocation) read(words []string) error {
	inv.values = map[string][]string{}
	v := inv.verb
	if v.raw {
		inv.args = words
		return nil
	}
	for len(words) > 0 {
		word := words[0]
		words = words[1:]
		var err error
		switch {
		case word == "--" && v.command:
			inv.tail = words
			words = nil
		case word == "--":
			inv.args = append(inv.args, words...)
			words = nil
		case word == "-help": // as the flag package had it
			return errHelp
		case strings.HasPrefix(word, "--"):
			words, err = inv.long(word[2:], words)
		case len(word) > 1 && word[0] == '-':
			words, err = inv.short(word[1:], words)
		case v.command && len(inv.args) > 0:
			inv.tail = append([]string{word}, words...)
			words = nil
		default:
			inv.args = append(inv.args, word)
		}
		if err != nil {
			return err
		}
	}
	switch {
	case v.max >= 0 && len(inv.args) > v.max:
		return usageErr("unexpected argument %s; %s", configQuote(inv.args[v.max]), v.hint())
	case len(inv.args) < v.min:
		return usageErr("something is missing: berth %s %s; %s", v.name, v.args, v.hint())
	}
	return nil
}

// hint is the way out of a usage error.
func (v *verb) hint() string { return "berth help " + v.name + " tells more" }

func (inv *invocation) long(word string, rest []string) ([]string, error) {
	name, value, given := strings.Cut(word, "=")
	if name == "help" {
		return nil, errHelp
	}
	for i := range inv.verb.options {
		o := &inv.verb.options[i]
		if o.name == name {
			return inv.take(o, "--"+name, value, given, rest)
		}
	}
	return nil, usageErr("there is no option --%s%s; %s", name, inv.verb.near(name), inv.verb.hint())
}

// noVerb is an error for a word that is no verb; it names the one that may be meant.
func noVerb(name string) error {
	way := "berth help lists them"
	best := 3 // more than two letters are no slip
	for _, v := range verbs() {
		if d := editDistance(name, v.name); d < best && d < len(name) {
			best, way = d, "did you mean "+v.name+"?"
		}
	}
	return usageErr("there is no command %s; %s", configQuote(name), way)
}

// near offers the option that was meant.
func (v *verb) near(name string) string {
	const most = 2 // letters that may be wrong
	best, at := "", most+1
	for i := range v.options {
		if d := editDistance(name, v.options[i].name); d < at {
			best, at = v.options[i].name, d
		}
	}
	if best == "" || at >= len(name) {
		return ""
	}
	return ", is it --" + best + "?"
}

func (inv *invocation) short(letters string, rest []string) ([]string, error) {
	for i := 0; i < len(letters); i++ {
		var o *option
		for k := range inv.verb.options {
			if o == nil && inv.verb.options[k].short == letters[i] { // the verb's own come first
				o = &inv.verb.options[k]
			}
		}
		switch {
		case o == nil && letters[i] == 'h':
			return nil, errHelp
		case o == nil:
			return nil, usageErr("there is no option -%s; %s", letters[i:i+1], inv.verb.hint())
		case o.other != "" && i == len(letters)-1 && len(rest) > 0 && wholeNumber(rest[0]) == nil:
			return inv.long(o.other, rest)
		case o.other != "" && wholeNumber(letters[i+1:]) == nil:
			return inv.long(o.other+"="+letters[i+1:], rest)
		case o.arg == "":
			if _, err := inv.take(o, "-"+letters[i:i+1], "", false, nil); err != nil {
				return nil, err
			}
		default:
			value := letters[i+1:]
			return inv.take(o, "-"+letters[i:i+1], strings.TrimPrefix(value, "="), value != "", rest)
		}
	}
	return rest, nil
}

// take stores the value of an option: its own, or the next word.
func (inv *invocation) take(o *option, shown, value string, given bool, rest []string) ([]string, error) {
	switch {
	case o.arg == "" && given:
		return nil, usageErr("%s takes no value, got %s; %s", shown, configQuote(value), inv.verb.hint())
	case o.arg != "" && !given && len(rest) == 0:
		return nil, usageErr("%s needs a value: %s %s", shown, shown, o.arg)
	case o.arg != "" && !given:
		value, rest = rest[0], rest[1:]
	}
	if len(o.values) > 0 && !inList(o.values, value) {
		return nil, usageErr("%s: %s is none of %s", shown, configQuote(value), strings.Join(o.values, ", "))
	}
	if o.check != nil {
		if err := o.check(value); err != nil {
			return nil, usageErr("%s: %v", shown, err)
		}
	}
	inv.values[o.name] = append(inv.values[o.name], value)
	inv.given = append(inv.given, givenOption{o.name, value})
	return rest, nil
}

// --- help ---

// flag is an option as texts show it.
//
//go:noinline
func (o *option) flag() string {
	s := "--" + o.name
	if o.short != 0 {
		s = "-" + string(rune(o.short)) + ", " + s
	}
	if len(o.name) == 1 {
		s = "-" + o.name
	}
	if o.arg != "" {
		s += " " + o.arg
	}
	return s
}

// use is the verb as its usage line shows it.
func (v *verb) use() string {
	s := "berth " + v.name
	if len(v.options) > 0 {
		s += " [OPTIONS]"
	}
	return strings.TrimRight(s+" "+v.args, " ")
}

// usage is what -h and help VERB print.
func (v *verb) usage(w io.Writer) {
	fmt.Fprintf(w, "Usage: %s\n\n", v.use())
	fill(w, "", sentence(v.help))
	for p := range strings.SplitSeq(v.text, "\n\n") {
		if p != "" {
			fmt.Fprintln(w)
			fill(w, "", p)
		}
	}
	if len(v.options) > 0 {
		fmt.Fprintln(w, "\nOptions:")
	}
	for i := range v.options {
		o := &v.options[i]
		fmt.Fprintf(w, "  %s\n", o.flag())
		fill(w, "        ", o.about())
	}
	if len(v.examples) > 0 {
		fmt.Fprintln(w, "\nExamples:")
	}
	for _, e := range v.examples {
		fmt.Fprintf(w, "  %s\n", e.line)
		fill(w, "        ", e.what)
	}
}

// about is the option's help, with its default.
func (o *option) about() string {
	if o.def == "" {
		return o.help
	}
	return o.help + " (default " + o.def + ")"
}

// usageWidth is how long lines of help may be: a terminal that nobody has resized has
// 80 columns.
const usageWidth = 80

// fill writes words in lines of at most usageWidth columns, each behind indent. Words
// that are longer have a line of their own.
func fill(w io.Writer, indent, text string) {
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && utf8.RuneCountInString(indent+line+" "+word) >= usageWidth {
			fmt.Fprintln(w, indent+line)
			line = ""
		}
		line = strings.TrimLeft(line+" "+word, " ")
	}
	fmt.Fprintln(w, indent+line)
}

// sentence is a help line as a sentence.
//
//go:noinline
func sentence(s string) string { return strings.ToUpper(s[:1]) + s[1:] + "." }
