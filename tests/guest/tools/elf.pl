# What ELF files ask for, of any word size and byte order, so that the guest's architecture need not be the host's and no
# binutils are wanted.
use strict;
use warnings;
use File::Basename qw(basename);

# The file names of the interpreter and of each DT_NEEDED; nothing for a file that is not ELF.
sub needed {
    my ($file) = @_;
    open(my $in, '<:raw', $file) or die "guest: cannot read $file: $!\n";
    local $/;
    my $elf = <$in>;
    return unless length $elf > 64 && substr($elf, 0, 4) eq "\x7fELF";
    my $wide = ord(substr($elf, 4, 1)) == 2;
    my $e = ord(substr($elf, 5, 1)) == 2 ? '>' : '<';
    my ($half, $word, $size) = ("S$e", "L$e", $wide ? "Q$e" : "L$e");
    my $get = sub { unpack($_[0], substr($elf, $_[1], 8)) };

    my $table = $get->($size, $wide ? 32 : 28);
    my ($entry, $count) = unpack("$half$half", substr($elf, $wide ? 54 : 42, 4));
    my (@loads, @dynamic, @names);
    for my $i (0 .. $count - 1) {
        my $at = $table + $i * $entry;
        my $type = $get->($word, $at);
        my ($offset, $address, $length) = map { $get->($size, $at + $_) } $wide ? (8, 16, 32) : (4, 8, 16);
        push @loads, [$offset, $address, $length] if $type == 1;
        @dynamic = ($offset, $length) if $type == 2;
        push @names, basename(unpack('Z*', substr($elf, $offset, $length))) if $type == 3;
    }
    return @names unless @dynamic;

    my ($strings, @offsets);
    my $pair = $wide ? 16 : 8;
    for (my $at = $dynamic[0]; $at < $dynamic[0] + $dynamic[1]; $at += $pair) {
        my ($tag, $value) = ($get->($size, $at), $get->($size, $at + $pair / 2));
        last if $tag == 0;
        push @offsets, $value if $tag == 1;
        $strings = $value if $tag == 5;
    }
    my ($load) = grep { $strings >= $_->[1] && $strings < $_->[1] + $_->[2] } @loads;
    my $base = $strings - $load->[1] + $load->[0];
    return (@names, map { unpack('Z*', substr($elf, $base + $_, 256)) } @offsets);
}

1;
