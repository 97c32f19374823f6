-- ARGV: time, max_ready or empty, jobs. Answers for each under which id it was known, or an empty text;
-- or the text `full`.
mark_layout()
local all = {}
for nth = 3, #ARGV, FIELDS do all[#all + 1] = sketch(nth) end
local found = known_as(all)
local fresh, n_waiting, told = {}, 0, {}
for nth, one in ipairs(all) do
  told[nth] = found[nth] or ''
  if not found[nth] then
    fresh[#fresh + 1] = one
    if not expired(one.job) then n_waiting = n_waiting + 1 end
  end
end
if #fresh == 0 then return told end
local max_ready = tonumber(ARGV[2])
if max_ready then
  local depth = tally()
  if depth.ready + depth.delayed + depth.strangers + n_waiting > max_ready then return 'full' end
end
local first = places(#fresh)
for nth, one in ipairs(fresh) do admit(one, first + nth - 1) end
flush()
tell_arrival()
return told
