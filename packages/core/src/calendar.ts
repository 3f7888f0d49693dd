/**
 * Months of the Gregorian calendar in UTC, counted from January 1970. By arithmetic, since core has no clock and so no
 * `Date`: a year that begins in March has its leap day at its end, and its months' lengths repeat every five.
 */
const DAY_MS = 86_400_000;
/** From 0000-03-01 to 1970-01-01. */
const EPOCH_DAYS = 719_468;
const ERA_DAYS = 146_097;
const ERA_YEARS = 400;

/** The month that holds this time. */
export function monthOf(at: number): number {
  const days = Math.floor(at / DAY_MS) + EPOCH_DAYS;
  const era = Math.floor(days / ERA_DAYS);
  const day_of_era = days - era * ERA_DAYS;
  const year_of_era = Math.floor(
    (day_of_era -
      Math.floor(day_of_era / 1460) +
      Math.floor(day_of_era / 36_524) -
      Math.floor(day_of_era / 146_096)) /
      365,
  );
  const day_of_year =
    day_of_era - (365 * year_of_era + Math.floor(year_of_era / 4) - Math.floor(year_of_era / 100));
  const month_from_march = Math.floor((5 * day_of_year + 2) / 153);
  return 12 * (era * ERA_YEARS + year_of_era - 1970) + month_from_march + 2;
}

/** When it begins. */
export function monthStart(month: number): number {
  const from_march = month - 2;
  const year = 1970 + Math.floor(from_march / 12);
  const month_of_year = from_march - 12 * Math.floor(from_march / 12);
  const era = Math.floor(year / ERA_YEARS);
  const year_of_era = year - era * ERA_YEARS;
  const day_of_year = Math.floor((153 * month_of_year + 2) / 5);
  const day_of_era =
    365 * year_of_era + Math.floor(year_of_era / 4) - Math.floor(year_of_era / 100) + day_of_year;
  return (era * ERA_DAYS + day_of_era - EPOCH_DAYS) * DAY_MS;
}
